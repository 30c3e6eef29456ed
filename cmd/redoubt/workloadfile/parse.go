package workloadfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"

	"redoubt.dev/redoubt/control/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	// MaxSize of a file in bytes.
	MaxSize = 1 << 20
	// MaxDocuments of a file.
	MaxDocuments = 1000
	// MaxErrors that are reported at once.
	MaxErrors = 10
)

// Read parses the file at path, or stdin for "-". No more of it is read than
// may be in a file.
func Read(path string, stdin io.Reader) ([]*redoubtv1.Workload, error) {
	name, from := filepath.Base(path), stdin
	if path == "-" {
		name = "stdin"
	} else {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("read workload file: %w", err)
		}
		defer f.Close()
		st, err := f.Stat()
		switch {
		case err != nil:
			return nil, fmt.Errorf("read workload file: %w", err)
		case st.IsDir():
			return nil, fmt.Errorf("%s is a folder; name a file in it", path)
		case st.Size() > MaxSize:
			return nil, tooBig(name, st.Size())
		}
		from = f
	}
	data, err := io.ReadAll(io.LimitReader(from, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read workload file %s: %w", name, err)
	}
	if len(data) > MaxSize && path == "-" {
		return nil, fmt.Errorf("stdin is more than 1 MiB, the limit")
	}
	return Parse(name, data)
}

func tooBig(name string, size int64) error {
	return fmt.Errorf("%s is %.1f MiB, the limit is 1 MiB", name, float64(size)/(1<<20))
}

// Parse reads every document of a file called name. The workloads are as they
// were written, without defaults, and each has passed the control plane's own
// rules. An error is an Errors unless the file as a whole cannot be read.
func Parse(name string, data []byte) ([]*redoubtv1.Workload, error) {
	switch {
	case len(data) > MaxSize:
		return nil, tooBig(name, int64(len(data)))
	case !utf8.Valid(data):
		return nil, fmt.Errorf("%s is not text in UTF-8", name)
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if t := bytes.TrimLeft(data, " \t\r\n"); len(t) > 0 && (t[0] == '{' || t[0] == '[') {
		// JSON may be indented by tabs, which YAML forbids; a tab cannot be
		// part of a JSON string.
		data = bytes.ReplaceAll(data, []byte("\t"), []byte(" "))
	}
	p := &parser{file: name}
	p.documents(data)
	if len(p.errs) > 0 {
		return nil, p.errs.limited()
	}
	if len(p.workloads) == 0 {
		return nil, fmt.Errorf("%s has no workload in it", name)
	}
	return p.workloads, nil
}

type parser struct {
	file      string
	workloads []*redoubtv1.Workload
	errs      Errors
}

func (p *parser) documents(data []byte) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	seen := map[string]int{}
	for n := 0; ; n++ {
		var doc yaml.Node
		err := decode(dec, &doc)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			p.errs = append(p.errs, p.syntax(err, data))
			return
		}
		if n >= MaxDocuments {
			p.errs = append(p.errs, Error{File: p.file, Line: doc.Line, Column: doc.Column,
				Message: fmt.Sprintf("more than %d documents; split the file", MaxDocuments)})
			return
		}
		if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
			continue
		}
		d := newDocument(p.file, doc.Content[0])
		w := d.read()
		p.errs = append(p.errs, d.errs...)
		if len(d.errs) > 0 {
			continue
		}
		key := fleet.NamespaceOrDefault(w.GetNamespace()) + "/" + w.GetName()
		if first, ok := seen[key]; ok {
			p.errs = append(p.errs, Error{File: p.file, Workload: w.GetName(), Line: d.root.Line, Column: d.root.Column,
				Message: fmt.Sprintf("defined twice in this file, first on line %d", first)})
			continue
		}
		seen[key] = d.root.Line
		p.workloads = append(p.workloads, w)
	}
}

// decode turns a panic of the YAML package into an error: input is a stranger's.
func decode(dec *yaml.Decoder, doc *yaml.Node) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: cannot be read: %v", r)
		}
	}()
	return dec.Decode(doc)
}

var yamlLine = regexp.MustCompile(`^line (\d+): `)

// syntax turns an error of the YAML package into a sentence with a place.
func (p *parser) syntax(err error, data []byte) Error {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	e := Error{File: p.file, Line: 1, Column: 1}
	if m := yamlLine.FindStringSubmatch(msg); m != nil {
		e.Line, _ = strconv.Atoi(m[1])
		msg = msg[len(m[0]):]
	}
	e.Message = "not valid YAML: " + msg
	for i, line := range strings.Split(string(data), "\n") {
		indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
		if at := strings.IndexByte(indent, '\t'); at >= 0 && strings.TrimSpace(line) != "" {
			return Error{File: p.file, Line: i + 1, Column: at + 1, Message: "indented by a tab; YAML allows only spaces"}
		}
	}
	return e
}
