// Package net holds tests with real processes in network namespaces: the demo,
// judged and searched for what it left on the host, interrupted at random
// moments, and with a site cut off for longer than identities last. They run
// with `make net`, alone on the host, since they compare everything on it
// before and after.
package net
