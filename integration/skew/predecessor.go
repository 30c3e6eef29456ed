package skew

// Predecessor is the last commit of feature level 2, one below this one's: a
// server of it knows no network rules, so the fleet must not keep any until its
// last server is upgraded. Whoever raises state.FeatureLevel pins the last commit
// below the new level here, and has newKind in roll_test.go do what that level is
// needed for.
const Predecessor = "ab9ebd10dea127d11891501c779a32e4e9af8ce5"

// AgentPredecessor is the commit that agents come from and go back to. An older
// one cannot be gone back to: it knows no policy in the state of a node's network,
// and refuses to begin rather than let instances out.
const AgentPredecessor = "7e8991f40157485c1f37d12b52b00102d865145b"
