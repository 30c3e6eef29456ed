package server

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	// maxWords bounds a text of an agent that is written for people, bytes;
	// maxWord one that names something: a version, an address, a kernel. They
	// are cut here, before anything is proposed: Apply refuses none of them for
	// its length, or servers of two versions could differ in what they refuse.
	maxWords, maxWord = 1 << 10, 256
)

// plain makes a text of an agent fit to be shown: an agent may be hostile, and
// its words end on an administrator's terminal. Control and formatting
// characters become spaces, and what is longer than most bytes is cut.
func plain(text string, most int) string {
	long := len(text) > most
	if long {
		// Looking at more would cost more than it can give.
		text = text[:most]
	}
	text = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) {
			return ' '
		}
		return r
	}, text)
	if !long {
		return text
	}
	const mark = "…"
	text = text[:min(len(text), most-len(mark))]
	for len(text) > 0 && !utf8.ValidString(text[max(0, len(text)-utf8.UTFMax):]) && !utf8.RuneStart(text[len(text)-1]) {
		text = text[:len(text)-1]
	}
	return strings.ToValidUTF8(text, "") + mark
}

// word and words clean texts in place.
func word(texts ...*string) {
	for _, t := range texts {
		*t = plain(*t, maxWord)
	}
}

func words(texts ...*string) {
	for _, t := range texts {
		*t = plain(*t, maxWords)
	}
}

func cleanHello(h *redoubtv1.Hello) {
	word(&h.BootId, &h.AgentVersion, &h.GossipAddress)
}

func cleanStatus(s *redoubtv1.InstanceStatus) {
	words(&s.Message, &s.NotReady, &s.LastEnd)
	word(&s.Runtime, &s.Address, &s.ImageDigest, &s.Kernel)
}

// cleanReport leaves out labels whose key would not be shown as it is: nobody
// can have asked for one.
func cleanReport(r *redoubtv1.Report) {
	if h := r.GetHost(); h != nil {
		word(&h.Arch, &h.Kernel, &h.BootId)
		if k := h.GetKvm(); k != nil {
			words(&k.Reason, &k.Fix)
		}
	}
	for key, value := range r.GetLabels() {
		if plain(key, maxWord) != key {
			delete(r.Labels, key)
			continue
		}
		r.Labels[key] = plain(value, maxWords)
	}
	for _, f := range r.GetFindings() {
		if f == nil {
			continue
		}
		word(&f.Runtime, &f.Variant, &f.Version, &f.Digest)
		words(&f.Reason, &f.Fix)
	}
}

// cleanObserved cleans what a node said through another server.
func cleanObserved(n *redoubtv1.NodeObservation) {
	if h := n.GetHello(); h != nil {
		cleanHello(h)
	}
	if r := n.GetReport(); r != nil {
		cleanReport(r)
	}
	for _, st := range n.GetStatuses() {
		if st != nil {
			cleanStatus(st)
		}
	}
	n.Warnings = cleanWarnings(n.GetWarnings())
}

// maxWarnings of one node are taken.
const maxWarnings = 8

func cleanWarnings(all []string) (out []string) {
	for _, w := range all[:min(len(all), maxWarnings)] {
		out = append(out, plain(w, maxWords))
	}
	return out
}

// maxCounts of one instance's egress rules are taken.
const maxCounts = 64*64 + 1

func cleanCounts(all []*redoubtv1.EgressCount) (out []*redoubtv1.EgressCount) {
	for _, c := range all[:min(len(all), maxCounts)] {
		if c != nil {
			word(&c.Rule)
			out = append(out, c)
		}
	}
	return out
}

// agentError is what an agent says of a stream that it ends, for its user.
func agentError(e *redoubtv1.AttachError) error {
	code := codes.Code(e.GetCode())
	if code == codes.OK || code > codes.Unauthenticated {
		code = codes.Unknown // an end with an error is never a success
	}
	return status.Error(code, plain(e.GetMessage(), maxWords))
}

// saysOfExec tells whether an agent may say m: the name of the instance is the
// server's to say.
func saysOfExec(m *redoubtv1.ExecResponse) bool {
	switch m.GetMessage().(type) {
	case *redoubtv1.ExecResponse_Stdout, *redoubtv1.ExecResponse_Stderr, *redoubtv1.ExecResponse_ExitCode:
		return true
	}
	return false
}
