package registry

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/pelletier/go-toml/v2"
)

// maxFile bounds each file of the directory.
const maxFile = 1 << 20

// Names of the files.
const (
	credentialsFile = "config.json"
	hostsFile       = "hosts.toml"
)

// Dir is a node's directory of registries; one that does not exist is empty.
type Dir string

// Check reads everything and tells what is wrong with it, if anything.
func (d Dir) Check() error {
	if d == "" {
		return nil
	}
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("directory of registries: %w", err)
	}
	_, err = readCredentials(d.path(credentialsFile))
	errs := []error{owned(string(d), false), ignoreAbsent(err)}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		_, err := readCredentials(d.path(e.Name(), credentialsFile))
		errs = append(errs, ignoreAbsent(err), ignoreAbsent(checkHosts(d.path(e.Name()))))
	}
	return errors.Join(errs...)
}

func (d Dir) path(parts ...string) string {
	return filepath.Join(append([]string{string(d)}, parts...)...)
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Host is the directory of host's hosts.toml or certificates, checked; "" if
// it has none.
func (d Dir) Host(host string) (string, error) {
	if d == "" || !plainName(host) {
		return "", nil
	}
	for _, name := range hostNames(host) {
		dir := d.path(name)
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			continue
		}
		if err := checkHosts(dir); err != nil {
			return "", ignoreAbsent(err)
		}
		return dir, nil
	}
	return "", nil
}

// hostNames are the directories that may be host's, the narrowest first.
func hostNames(host string) []string {
	names := []string{host}
	if i := strings.LastIndexByte(host, ':'); i > 0 {
		names = append(names, host[:i]+"_"+host[i+1:]+"_")
	}
	return names
}

// plainName keeps a reference's host from leaving the directory.
func plainName(host string) bool {
	return host != "" && host != "." && host != ".." && !strings.ContainsAny(host, "/\x00")
}

// checkHosts tells whether what lies in a registry's directory may be relied
// on. containerd itself passes over a file that it cannot read as if there
// were none, and would then ask a registry that was to be left alone.
func checkHosts(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("registry directory: %w", err)
	}
	if err := owned(dir, false); err != nil {
		return err
	}
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".crt", ".cert", ".pem", ".toml":
			err = owned(filepath.Join(dir, e.Name()), false)
		case ".key":
			err = owned(filepath.Join(dir, e.Name()), true)
		}
		if err != nil {
			return err
		}
	}
	path := filepath.Join(dir, hostsFile)
	data, err := readOwned(path, false)
	if errors.Is(err, fs.ErrNotExist) {
		// Certificates alone are fine, and so is a directory that holds only
		// credentials: both leave the address as it is.
		return nil
	}
	if err != nil {
		return err
	}
	var doc struct {
		Server string                    `toml:"server"`
		Header map[string]any            `toml:"header"`
		Host   map[string]map[string]any `toml:"host"`
	}
	if err := toml.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("%s is no hosts.toml: %w", path, tomlError(err))
	}
	secret := len(doc.Header) > 0
	for _, h := range doc.Host {
		_, ok := h["header"]
		secret = secret || ok
	}
	if secret { // headers are where people put tokens
		return owned(path, true)
	}
	return nil
}

// tomlError keeps the line and leaves the text of the file out.
func tomlError(err error) error {
	var at *toml.DecodeError
	if errors.As(err, &at) {
		row, col := at.Position()
		return fmt.Errorf("line %d, column %d does not parse", row, col)
	}
	return errors.New("it does not parse")
}

// readOwned reads a file that only its owner can have written, and, if it is
// secret, read.
func readOwned(path string, secret bool) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("registry file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("registry file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("registry file %s is not a regular file", path)
	}
	if err := private(path, info, secret); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("registry file: %w", err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("registry file %s is larger than %d bytes", path, maxFile)
	}
	return data, nil
}

func owned(path string, secret bool) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("registry file: %w", err)
	}
	return private(path, info, secret)
}

// private refuses what others can change, or, if it is secret, read.
func private(path string, info fs.FileInfo, secret bool) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, who could change it: chown root %s", path, st.Uid, path)
	}
	mode := info.Mode().Perm()
	switch {
	case secret && mode&0o077 != 0:
		return fmt.Errorf("%s holds secrets and others can read it (mode %04o): chmod 600 %s", path, mode, path)
	case mode&0o022 != 0:
		return fmt.Errorf("%s can be changed by others (mode %04o): chmod go-w %s", path, mode, path)
	}
	return nil
}
