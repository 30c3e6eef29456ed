// Package joining holds the test that makes a host a server and a node from the
// one file, as a person would, starts what was installed, upgrades it, and takes
// it away again. The host's own files are not touched: mounts of the test's own
// lie over /etc, /usr/local, /var/lib and /run.
package joining
