package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// start is one start of one instance, as its beacon told it.
type start struct {
	site, uid, nonce string
	instance         string
	fence            uint64
	beats            []time.Time
	term             time.Time // zero: it was never told to end
}

func (s *start) first() time.Time { return s.beats[0] }
func (s *start) last() time.Time  { return s.beats[len(s.beats)-1] }

// recorder reads what beacons write, a folder a site.
type recorder struct {
	dirs map[string]string // by site

	mu     sync.Mutex
	read   map[string]int64 // bytes of each file that are in starts
	starts map[string]*start
	bad    []string
}

func newRecorder(dirs map[string]string) *recorder {
	return &recorder{dirs: dirs, read: map[string]int64{}, starts: map[string]*start{}}
}

// look reads what is new and returns the starts of one instance, of all if uid
// is empty. They are copies.
func (r *recorder) look(uid string) []start {
	r.mu.Lock()
	defer r.mu.Unlock()
	for site, dir := range r.dirs {
		pattern := "*"
		if uid != "" {
			pattern = uid + "_*"
		}
		files, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, path := range files {
			if err := r.file(site, path); err != nil {
				r.bad = append(r.bad, fmt.Sprintf("%s: %v", path, err))
			}
		}
	}
	var out []start
	for _, s := range r.starts {
		if (uid == "" || s.uid == uid) && len(s.beats) > 0 {
			out = append(out, *s)
		}
	}
	return out
}

func (r *recorder) file(site, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	data := make([]byte, st.Size()-r.read[path])
	n, err := f.ReadAt(data, r.read[path])
	if n == 0 {
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	whole := bytes.LastIndexByte(data[:n], '\n') + 1
	r.read[path] += int64(whole)
	s := r.starts[path]
	if s == nil {
		uid, nonce, _ := strings.Cut(filepath.Base(path), "_")
		s = &start{site: site, uid: uid, nonce: nonce}
		r.starts[path] = s
	}
	for line := range strings.Lines(string(data[:whole])) {
		if err := s.line(strings.TrimSpace(line)); err != nil {
			return err
		}
	}
	return nil
}

func (s *start) line(text string) error {
	if strings.HasPrefix(text, "instance ") {
		_, err := fmt.Sscanf(text, "instance %s fence %d", &s.instance, &s.fence)
		return err
	}
	var what string
	var ms int64
	if _, err := fmt.Sscanf(text, "%s %d", &what, &ms); err != nil {
		return fmt.Errorf("%q: %w", text, err)
	}
	at := time.UnixMilli(ms)
	if what == "term" {
		s.term = at
	}
	s.beats = append(s.beats, at)
	return nil
}
