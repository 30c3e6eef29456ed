//go:build tools

// Package runc pins opencontainers/runc, which is a program and not a library:
// this import keeps the requirement in go.mod, and the build takes
// github.com/opencontainers/runc as its target.
package runc

import _ "github.com/opencontainers/runc"
