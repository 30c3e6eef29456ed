package workloadfile

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"gopkg.in/yaml.v3"

	"redoubt.dev/redoubt/control/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// portEntry reads one entry of a list of ports. One whose containerPort or
// hostPort is a range, as 8000-8010, becomes an entry for each port of it.
func (d *document) portEntry(path string, n *yaml.Node, list protoreflect.List) {
	at := fmt.Sprintf("%s[%d]", path, list.Len())
	d.at[at] = n
	first := list.AppendMutable().Message()
	if isNull(n) {
		d.fail(n, at, "%s is empty", at)
		return
	}
	container, host := rangeIn(n, "containerPort"), rangeIn(n, "hostPort")
	if container == nil && host == nil {
		d.message(at, n, first)
		return
	}
	// The rest of the entry is read as it stands, the ranges by themselves.
	rest := *n
	rest.Content = nil
	for i := 0; i+1 < len(n.Content); i += 2 {
		if v := n.Content[i+1]; v != container && v != host {
			rest.Content = append(rest.Content, n.Content[i], v)
		}
	}
	d.message(at, &rest, first)
	from := d.portRange(at+".containerPort", container)
	to := d.portRange(at+".hostPort", host)
	switch {
	case from == nil && container != nil || to == nil && host != nil:
		return
	case from == nil || to == nil && first.Interface().(*redoubtv1.ContainerPort).GetHostPort() != 0:
		d.fail(n, at, "%s: containerPort and hostPort must be ranges of one length, as 8000-8010", at)
		return
	case to != nil && to.Last-to.First != from.Last-from.First:
		d.fail(host, at, "%s: hostPort %s has %d ports and containerPort %s has %d", at, to, int(to.Last-to.First)+1, from, int(from.Last-from.First)+1)
		return
	case int(from.Last-from.First)+1 > fleet.MaxPorts:
		d.fail(container, at, "%s: %s has %d ports, the limit is %d", at, from, int(from.Last-from.First)+1, fleet.MaxPorts)
		return
	case list.Len()+int(from.Last-from.First) > fleet.MaxPorts:
		d.fail(n, at, "%s: there are more than %d ports with those of %s", at, fleet.MaxPorts, from)
		return
	}
	entry := first.Interface().(*redoubtv1.ContainerPort)
	if entry.GetName() != "" && from.First != from.Last {
		d.fail(n, at, "%s: a range has no name; remove it", at)
		return
	}
	for i := uint32(0); i <= uint32(from.Last-from.First); i++ {
		e := entry
		if i > 0 {
			at := fmt.Sprintf("%s[%d]", path, list.Len())
			d.at[at] = n
			e = list.AppendMutable().Message().Interface().(*redoubtv1.ContainerPort)
			e.HostIp, e.Protocol = entry.GetHostIp(), entry.GetProtocol()
		}
		e.ContainerPort = uint32(from.First) + i
		if to != nil {
			e.HostPort = uint32(to.First) + i
		}
	}
}

// rangeIn is the value of key, if it is text and so meant as a range.
func rangeIn(n *yaml.Node, key string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Value == key && v.Kind == yaml.ScalarNode && v.Tag == "!!str" && strings.Contains(v.Value, "-") {
			return v
		}
	}
	return nil
}

func (d *document) portRange(at string, n *yaml.Node) *fleet.PortRange {
	if n == nil {
		return nil
	}
	r, err := fleet.ParsePortRange(n.Value)
	if err != nil {
		d.fail(n, at, "%s: %s", at, err)
		return nil
	}
	return &r
}
