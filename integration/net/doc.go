// Package net holds tests with real processes in network namespaces: the demo,
// judged and searched for what it left on the host, interrupted at random
// moments, with a site cut off for longer than identities last, and with its
// network attacked from inside containers. They run
// with `make net`, alone on the host, since they compare everything on it
// before and after.
package net
