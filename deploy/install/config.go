package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// Settings are keys of a configuration file with their values; more than one
// value is a list.
type Settings map[string][]string

const digestLine = "# untouched: "

// Config is a step that writes settings into the configuration file. The file
// that is there keeps its other settings. One that a person has changed is
// kept as it is; Note then names what it lacks.
func (h Host) Config(path, about string, give Settings) (Step, error) {
	at := h.at(path)
	s := Step{What: path, Mode: 0o600}
	have, mode, err := readFile(at)
	old := Settings{}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.Verb = Create
	case err != nil:
		return s, err
	default:
		if old, err = parseSettings(have); err != nil {
			return s, fmt.Errorf("%s: %w; mend it, or move it away", at, err)
		}
		if !untouched(have) {
			s.Verb, s.Content, s.Note = Keep, have, "it was changed by hand"
			if missing := lacks(old, give); len(missing) > 0 {
				s.Note += "; it does not say what was asked for: put there " + strings.Join(missing, "; ")
			}
			return s, nil
		}
		s.Verb = Replace
	}
	all := maps.Clone(old)
	maps.Copy(all, give)
	if s.Content, err = render(about, all); err != nil {
		return s, err
	}
	if s.Verb == Replace && bytes.Equal(have, s.Content) {
		if mode == s.Mode {
			s.Verb = Same
			return s, nil
		}
		s.Verb, s.Note = Mend, fmt.Sprintf("its mode is %04o", mode)
	}
	s.do = func(context.Context) error { return writeFile(at, s.Mode, bytes.NewReader(s.Content)) }
	return s, nil
}

// lacks lists the settings of give that have does not hold, as lines of YAML.
func lacks(have, give Settings) (out []string) {
	for _, key := range slices.Sorted(maps.Keys(give)) {
		if slices.Equal(have[key], give[key]) {
			continue
		}
		line, err := yaml.Marshal(map[string]any{key: plainValue(give[key])})
		if err != nil {
			continue // strings and lists of strings always marshal
		}
		out = append(out, strings.Join(strings.Fields(string(line)), " "))
	}
	return out
}

// plainValue writes numbers and words without quotes, as a person would.
func plainValue(v []string) *yaml.Node {
	list := &yaml.Node{Kind: yaml.SequenceNode}
	for _, s := range v {
		list.Content = append(list.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: s})
	}
	if len(v) == 1 {
		return list.Content[0]
	}
	return list
}

// render writes a configuration with the line by which it is known to be
// untouched.
func render(about string, all Settings) ([]byte, error) {
	var b bytes.Buffer
	for line := range strings.Lines(about) {
		b.WriteString("# " + line)
	}
	b.WriteString("\n")
	for _, key := range slices.Sorted(maps.Keys(all)) {
		line, err := yaml.Marshal(map[string]any{key: plainValue(all[key])})
		if err != nil {
			return nil, fmt.Errorf("setting %s: %w", key, err)
		}
		b.Write(line)
	}
	return append([]byte(digestLine+sum(b.Bytes())+"\n"), b.Bytes()...), nil
}

func sum(b []byte) string {
	d := sha256.Sum256(b)
	return hex.EncodeToString(d[:16])
}

func untouched(file []byte) bool {
	first, rest, _ := bytes.Cut(file, []byte("\n"))
	return string(first) == digestLine+sum(rest)
}

// parseSettings reads a flat mapping of values and lists of values, as the
// daemons do.
func parseSettings(file []byte) (Settings, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(file, &doc); err != nil {
		return nil, err
	}
	out := Settings{}
	if len(doc.Content) == 0 {
		return out, nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: it must be a mapping of names to values", root.Line)
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		items := []*yaml.Node{root.Content[i+1]}
		if items[0].Kind == yaml.SequenceNode {
			items = items[0].Content
		}
		var values []string
		for _, item := range items {
			values = append(values, item.Value)
		}
		out[root.Content[i].Value] = values
	}
	return out, nil
}
