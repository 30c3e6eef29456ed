package surface

// Action is what a filter returns for a call.
type Action uint32

// The actions, strictest first, as the kernel ranks them.
const (
	ActionKillProcess Action = 0x80000000
	ActionKillThread  Action = 0x00000000
	ActionTrap        Action = 0x00030000
	ActionErrno       Action = 0x00050000
	ActionUserNotify  Action = 0x7fc00000
	ActionTrace       Action = 0x7ff00000
	ActionLog         Action = 0x7ffc0000
	ActionAllow       Action = 0x7fff0000
)

// lets says whether the call may happen after a. A value that the kernel does
// not know kills; a supervisor may let the call happen, so it counts.
func (a Action) lets() bool {
	switch a & 0xffff0000 {
	case ActionAllow, ActionLog, ActionTrace, ActionUserNotify:
		return true
	}
	return false
}
