package main

//go:generate go run . docs markdown --dir ../../docs/cli
