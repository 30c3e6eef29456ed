// Package systemd holds the units that install writes, and speaks systemd's
// notification protocol: that a daemon is ready, that it is stopping, and that
// it is alive.
//
// The units stand as files beside this one and are carried in the program, so
// that the one file is enough to install. A Notifier of a process that systemd
// did not start does nothing. What it says goes over a datagram that is never
// waited for, so a daemon never hangs on its supervisor.
package systemd
