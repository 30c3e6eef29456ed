package workloadfile

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"gopkg.in/yaml.v3"

	"redoubt.dev/redoubt/control/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// document reads one workload and remembers where each field stands.
type document struct {
	file, name string
	root       *yaml.Node
	errs       Errors
	at         map[string]*yaml.Node // a field's path to its key or entry
	broken     []string              // paths that could not be read
	unknownIn  []string              // paths of the mappings with unknown fields
}

func newDocument(file string, root *yaml.Node) *document {
	d := &document{file: file, root: root, at: map[string]*yaml.Node{"": root}}
	if root.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(root.Content); i += 2 {
			if v := root.Content[i+1]; root.Content[i].Value == "name" && v.Kind == yaml.ScalarNode && v.Tag == "!!str" && fleet.CheckName(v.Value) == nil {
				d.name = v.Value
				break
			}
		}
	}
	return d
}

func (d *document) fail(n *yaml.Node, path, format string, args ...any) {
	d.errs = append(d.errs, Error{File: d.file, Workload: d.name, Line: n.Line, Column: n.Column, Message: fmt.Sprintf(format, args...)})
	if path != "" {
		d.broken = append(d.broken, path)
	}
}

func (d *document) read() *redoubtv1.Workload {
	w := &redoubtv1.Workload{}
	if d.tricks(d.root) {
		return w
	}
	d.message("", d.root, w.ProtoReflect())
	_, err := fleet.NewWorkload(w)
	var invalid *fleet.InvalidWorkload
	if errors.As(err, &invalid) {
		for _, f := range invalid.Fields {
			if !d.echo(f) {
				n := d.place(f.Path)
				d.errs = append(d.errs, Error{File: d.file, Workload: d.name, Line: n.Line, Column: n.Column, Message: f.Error()})
			}
		}
	}
	return w
}

// echo tells whether a complaint only follows from one that was made before: of
// a field that could not be read, or of one lacking beside an unknown one.
func (d *document) echo(f fleet.FieldError) bool {
	within := func(a, b string) bool {
		return a == b || strings.HasPrefix(a, b+".") || strings.HasPrefix(a, b+"[")
	}
	if slices.ContainsFunc(d.broken, func(p string) bool { return within(f.Path, p) || within(p, f.Path) }) {
		return true
	}
	return strings.HasPrefix(f.Problem, "is required") && slices.ContainsFunc(d.unknownIn, func(p string) bool { return p == parent(f.Path) })
}

// place is where the field of path stands, or the nearest thing around it.
func (d *document) place(path string) *yaml.Node {
	for {
		if n, ok := d.at[path]; ok {
			return n
		}
		path = parent(path)
	}
}

func parent(path string) string {
	return path[:max(strings.LastIndexAny(path, ".["), 0)]
}

// tricks refuses what could make a small file large or a value ambiguous.
func (d *document) tricks(n *yaml.Node) (found bool) {
	switch {
	case n.Kind == yaml.AliasNode:
		d.fail(n, "", "alias %q: anchors and aliases are not allowed; write the value out", "*"+n.Value)
		return true
	case n.Anchor != "":
		d.fail(n, "", "anchor %q: anchors and aliases are not allowed; write the value out", "&"+n.Anchor)
		return true
	case n.Style&yaml.TaggedStyle != 0:
		d.fail(n, "", "tag %q: tags are not allowed; quote the value if it is text", n.Tag)
		return true
	}
	for _, c := range n.Content {
		if d.tricks(c) {
			return true
		}
	}
	return false
}

// in says where a field belongs: " in isolation", nothing at the top.
func in(path string) string {
	if path == "" {
		return ""
	}
	return " in " + path
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}

// pairs visits the keys of a mapping; each key once.
func (d *document) pairs(path string, n *yaml.Node, visit func(key, value *yaml.Node)) {
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			d.fail(k, "", "a field's name must be a word%s", in(path))
			continue
		}
		if first, ok := seen[k.Value]; ok {
			d.fail(k, "", "field %q is given twice%s, first on line %d", clip(k.Value), in(path), first)
			continue
		}
		seen[k.Value] = k.Line
		visit(k, v)
	}
}

func (d *document) message(path string, n *yaml.Node, m protoreflect.Message) {
	if n.Kind != yaml.MappingNode {
		what := "a workload"
		if path != "" {
			what = path
		}
		d.fail(n, path, "%s must be a mapping of fields, this is %s", what, describe(n))
		if path == "" {
			d.broken = append(d.broken, fieldNames(m)...)
		}
		return
	}
	fields := m.Descriptor().Fields()
	d.pairs(path, n, func(k, v *yaml.Node) {
		f := fields.ByJSONName(k.Value)
		if f == nil {
			d.unknown(path, k, m)
			return
		}
		if path == "" && f.JSONName() == "network" && v.Kind == yaml.MappingNode {
			f = fields.ByJSONName("networkRules")
		}
		at := join(path, k.Value)
		d.at[at] = k
		if f.JSONName() == "networkRules" { // the rules know it by the word of the file
			at = "network"
			if _, both := d.at[at]; !both || k.Value == "network" {
				d.at[at] = k
			}
		}
		d.field(at, v, f, m)
	})
}

func fieldNames(m protoreflect.Message) (names []string) {
	fs := m.Descriptor().Fields()
	for i := range fs.Len() {
		names = append(names, fs.Get(i).JSONName())
	}
	return names
}

func (d *document) unknown(path string, k *yaml.Node, m protoreflect.Message) {
	d.unknownIn = append(d.unknownIn, path)
	hint := ""
	switch near := fleet.Nearest(k.Value, fieldNames(m)); {
	case near != "":
		hint = fmt.Sprintf(". Did you mean %q?", near)
	case strings.HasSuffix(path, ".httpGet") && k.Value == "headers":
		hint = `. Did you mean "httpHeaders"?`
	case strings.HasSuffix(path, ".httpGet") && k.Value == "host":
		hint = ": a probe asks its own container and nobody else; remove it"
	case path == "" && slices.Contains([]string{"apiVersion", "metadata", "spec"}, k.Value):
		hint = ": name, containers and the rest stand at the top, without apiVersion, metadata and spec"
	default:
		if owner := ownerOf(k.Value); owner != "" && owner != path {
			hint = fmt.Sprintf(". It belongs in %s", owner)
		}
	}
	d.fail(k, "", "unknown field %q%s%s", clip(k.Value), in(path), hint)
}

// ownerOf finds where a field that stands in the wrong place belongs.
func ownerOf(name string) string {
	top := (&redoubtv1.Workload{}).ProtoReflect().Descriptor().Fields()
	for i := range top.Len() {
		if f := top.Get(i); f.Message() != nil && !f.IsMap() && f.Message().Fields().ByJSONName(name) != nil {
			if f.IsList() {
				return f.JSONName() + "[…]"
			}
			return f.JSONName()
		}
	}
	if top.ByJSONName(name) != nil {
		return "the top of the file"
	}
	return ""
}

func (d *document) field(path string, n *yaml.Node, f protoreflect.FieldDescriptor, m protoreflect.Message) {
	if isNull(n) {
		d.fail(d.at[path], path, "%s has no value; give one or remove the line", path)
		return
	}
	switch {
	case f.FullName() == "redoubt.v1.NetworkRules.egress" && n.Kind == yaml.ScalarNode:
		if n.Value != "none" {
			d.fail(n, path, "%s must be a list of networks, or none, this is %s", path, describe(n))
			return
		}
		m.Set(m.Descriptor().Fields().ByName("no_egress"), protoreflect.ValueOfBool(true))
	case f.FullName() == "redoubt.v1.NetworkRules.egress" && n.Kind == yaml.SequenceNode && len(n.Content) == 0:
		// Elsewhere an empty list allows nothing, here it would allow all.
		d.fail(n, path, "%s is an empty list; write none to let instances out to nowhere, or remove the line", path)
	case f.IsMap():
		if n.Kind != yaml.MappingNode {
			d.fail(n, path, "%s must be a mapping of names to values, this is %s", path, describe(n))
			return
		}
		mm := m.Mutable(f).Map()
		quantity := f.JSONName() == "limits" || f.JSONName() == "requests"
		d.pairs(path, n, func(k, v *yaml.Node) {
			at := path + "." + clip(k.Value)
			d.at[at] = k
			if s, ok := d.text(at, v, quantity); ok {
				mm.Set(protoreflect.ValueOfString(k.Value).MapKey(), protoreflect.ValueOfString(s))
			}
		})
	case f.IsList():
		if n.Kind != yaml.SequenceNode {
			d.fail(n, path, "%s must be a list, this is %s; begin each entry with \"- \"", path, describe(n))
			return
		}
		list := m.Mutable(f).List()
		for i, c := range n.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			if f.FullName() == "redoubt.v1.Container.ports" {
				d.portEntry(path, c, list)
				continue
			}
			d.at[at] = c
			if f.Message() != nil {
				e := list.AppendMutable()
				if isNull(c) {
					d.fail(c, at, "%s is empty", at)
				} else {
					d.message(at, c, e.Message())
				}
			} else if s, ok := d.text(at, c, f.FullName() == "redoubt.v1.EgressRule.ports"); ok {
				list.Append(protoreflect.ValueOfString(s))
			} else {
				list.Append(protoreflect.ValueOfString("")) // keeps the numbering
			}
		}
	case f.Message() != nil:
		d.message(path, n, m.Mutable(f).Message())
	default:
		d.scalar(path, n, f, m)
	}
}

// measured are texts that may be written as a bare number: whether a unit is
// lacking is for the rules to say.
var measured = map[string]bool{"port": true, "sizeLimit": true, "lostAfter": true, "stopAfter": true}

func (d *document) scalar(path string, n *yaml.Node, f protoreflect.FieldDescriptor, m protoreflect.Message) {
	switch f.Kind() {
	case protoreflect.StringKind:
		if s, ok := d.text(path, n, measured[f.JSONName()]); ok {
			m.Set(f, protoreflect.ValueOfString(s))
		}
	case protoreflect.BoolKind:
		if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" {
			d.fail(n, path, "%s must be true or false, this is %s", path, describe(n))
			return
		}
		m.Set(f, protoreflect.ValueOfBool(strings.EqualFold(n.Value, "true")))
	case protoreflect.Uint32Kind:
		if v, ok := d.whole(path, n, 0, math.MaxUint32); ok {
			m.Set(f, protoreflect.ValueOfUint32(uint32(v)))
		}
	case protoreflect.Int64Kind:
		if v, ok := d.whole(path, n, math.MinInt64, math.MaxInt64); ok {
			m.Set(f, protoreflect.ValueOfInt64(v))
		}
	default:
		d.fail(n, path, "%s cannot be set in a file", path)
	}
}

func (d *document) whole(path string, n *yaml.Node, low, high int64) (int64, bool) {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" {
		hint := ""
		if _, err := strconv.ParseInt(n.Value, 10, 64); err == nil && n.Kind == yaml.ScalarNode {
			hint = "; remove the quotes"
		}
		d.fail(n, path, "%s must be a whole number, this is %s%s", path, describe(n), hint)
		return 0, false
	}
	v, err := strconv.ParseInt(n.Value, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange) || err == nil && (v < low || v > high):
		if low == 0 && strings.HasPrefix(n.Value, "-") {
			d.fail(n, path, "%s must not be negative, this is %s", path, clip(n.Value))
		} else {
			d.fail(n, path, "%s is far out of range: %s", path, clip(n.Value))
		}
		return 0, false
	case err != nil:
		d.fail(n, path, "%s must be a whole number in decimal, this is %s", path, clip(n.Value))
		return 0, false
	}
	return v, true
}

// text reads a string. A number or a truth value must be quoted, so that nobody
// wonders what became of "1.10" or "no"; a quantity may be a bare number.
func (d *document) text(path string, n *yaml.Node, quantity bool) (string, bool) {
	switch {
	case n.Kind != yaml.ScalarNode:
		d.fail(n, path, "%s must be text, this is %s", path, describe(n))
		return "", false
	case isNull(n):
		d.fail(n, path, "%s has no value; give one, or \"\" for an empty text", path)
		return "", false
	case n.Tag == "!!str", n.Tag == "!!timestamp", quantity && (n.Tag == "!!int" || n.Tag == "!!float"):
		return n.Value, true
	}
	d.fail(n, path, "%s must be text, this is %s; quote it: %q", path, describe(n), clip(n.Value))
	return "", false
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.Tag {
	case "!!int", "!!float":
		return "the number " + clip(n.Value)
	case "!!bool":
		return n.Value
	case "!!null":
		return "nothing"
	}
	return fmt.Sprintf("the text %q", clip(n.Value))
}
