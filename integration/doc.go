// Package integration holds the tests that join the halves of the system, and
// the rules of the house as tests.
package integration
