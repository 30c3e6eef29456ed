// Package topology makes a small internet of network namespaces on one kernel:
// servers around a core switch, sites behind routed links that can be cut, and
// a link to the host's own namespace for whoever uses the fleet.
//
//	host 10.77.0.254 ── core (switch and router, 10.77.0.253)
//	                     ├── s1 10.77.0.1, s2 …
//	                     ├── link 10.77.201.0/30 ── oslo (router, 10.77.1.254)
//	                     │                            ├── oslo-1 10.77.1.1 …
//	                     └── link 10.77.202.0/30 ── lab …
//
// Every name it makes begins with the plan's prefix, so Remove finds all of a
// plan without being told what was made, after a crash too. It needs root and
// uses netlink alone. The kernel's settings are changed only inside namespaces
// of its own.
//
// A World is used from one goroutine at a time.
package topology
