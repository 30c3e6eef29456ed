package fleet

import (
	"fmt"
	"time"

	"redoubt.dev/redoubt/isolation"
)

// Server is a control server that was admitted to the fleet.
type Server struct {
	ID                                     string
	APIAddress, RaftAddress, EnrollAddress string
	// FeatureLevel that the server declared: the newest command it can apply.
	FeatureLevel uint32
	Version      string
}

// Authority is a server's certificate authority, in DER. A server may have
// several while it changes them. Its key never leaves the server.
type Authority struct {
	Server      string
	Certificate []byte
}

// Role gives a user rights in a namespace.
type Role struct {
	User string
	// Namespace, or AllNamespaces.
	Namespace string
	// Role is one of RoleAdmin, RoleOperator, RoleViewer, RoleSubmitter.
	Role string
}

// The roles, and the namespace of a role that holds everywhere.
const (
	RoleAdmin     = "admin"
	RoleOperator  = "operator"
	RoleViewer    = "viewer"
	RoleSubmitter = "submitter"

	AllNamespaces = "*"
)

// AllNamespaces tells whether the role holds in every namespace.
func (r Role) AllNamespaces() bool { return r.Namespace == AllNamespaces || r.Namespace == "" }

// ValidRole refuses a word that is no role.
func ValidRole(role string) error {
	switch role {
	case RoleAdmin, RoleOperator, RoleViewer, RoleSubmitter:
		return nil
	}
	return fmt.Errorf("role %q is none of admin, operator, viewer, submitter", role)
}

// Token admits one node or server. Its secret is never stored.
type Token struct {
	ID         string
	SecretHash []byte // SHA-256
	// Role is TokenNode or TokenServer.
	Role string
	// Node, if set, is the only id that the token enrols; Site likewise.
	Node    isolation.NodeID
	Site    isolation.SiteID
	Expires time.Time
	// KeyHash is of the first key that used the token; BoundTo the node or
	// server that it enrolled. Both are empty before.
	KeyHash, BoundTo string
}

const (
	TokenNode   = "node"
	TokenServer = "server"
)

// StoredWorkload is a workload with what the control plane knows of it.
type StoredWorkload struct {
	// Spec is shared: never change it.
	Spec *Workload
	// UID tells the workload from an earlier one of the same name.
	UID string
	// Revision is the log index of the last change of the spec or of Stopping.
	Revision uint64
	// Stopping: its instances end, then it is forgotten.
	Stopping         bool
	Created, Updated time.Time
	UpdatedBy        string
	// NextOrdinal names the next instance, from 1; ordinals are never reused
	// while the workload is known.
	NextOrdinal uint64
	// Failures and Completions count a job's ended instances of this revision.
	Failures, Completions uint32
	// Trace is the traceparent of the call that made this revision, "" if none.
	Trace string
}

// InstanceName is the name of a workload's instance with that ordinal.
func InstanceName(workload string, ordinal uint64) string {
	return fmt.Sprintf("%s-%d", workload, ordinal)
}

// SiteKeys are a site's gossip keys: the first encrypts, all decrypt. It has no
// way to print them.
type SiteKeys struct {
	Site isolation.SiteID
	Keys [][]byte
}

func (k SiteKeys) String() string {
	return fmt.Sprintf("%d gossip keys of site %s", len(k.Keys), k.Site)
}
func (k SiteKeys) GoString() string { return k.String() }
