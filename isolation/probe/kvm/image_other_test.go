//go:build !amd64

package kvm

func assembled(int) []byte { return nil }
