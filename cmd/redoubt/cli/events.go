package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"redoubt.dev/redoubt/control/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	// followedLast is how many events stand before those that are followed.
	followedLast = 20
	// besideLast is how many stand below the status of something.
	besideLast = 5
)

func (a *app) eventsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "events", Short: "Show what was decided and what happened", Args: cobra.NoArgs,
		Long: "Shows what was decided and what happened in the fleet, the oldest first: what was\n" +
			"placed and why something waits, what started, failed and was restarted, which\n" +
			"nodes fell silent, and what people applied. Equal events are one, with their\n" +
			"number behind the reason. The fleet keeps the newest 64 of a workload, of its\n" +
			"instances, of a node or server, 1024 of a namespace and 4096 in all.\n" +
			"docs/events.md says what each means.",
	}
	a.client(c)
	a.formatted(c)
	a.namespaced(c)
	c.Flags().Lookup("namespace").Usage = "only that namespace (default: all that you may see)"
	follow := c.Flags().BoolP("follow", "f", false, fmt.Sprintf("begin with the last %d and go on as more come", followedLast))
	workload := c.Flags().String("workload", "", "only of that `WORKLOAD` and its instances")
	node := c.Flags().String("node", "", "only of that `NODE` and of what runs on it")
	since := c.Flags().Duration("since", 0, "only of so long ago or less, as 10m or 2h")
	last := c.Flags().Uint32("last", 0, "only the last `N`; 0: all that are kept")
	c.RunE = func(c *cobra.Command, _ []string) error {
		out, err := a.output()
		if err != nil {
			return err
		}
		filter := &redoubtv1.EventFilter{Namespace: a.namespace, Workload: *workload, Node: *node}
		if *since < 0 {
			return fmt.Errorf("--since %s: how long ago, as 10m or 2h", *since)
		}
		if *since > 0 {
			filter.Since = timestamppb.New(time.Now().Add(-*since))
		}
		if *follow && *since == 0 && !c.Flags().Changed("last") {
			*last = followedLast
		}
		return a.with(c.Context(), func(ctx context.Context, f *connection) error {
			resp, err := f.ListEvents(ctx, &redoubtv1.ListEventsRequest{Filter: filter, Last: *last})
			if status.Code(err) == codes.Unimplemented {
				return errors.New("events: the servers of this fleet are of a version that keeps none; upgrade them")
			}
			if err != nil {
				return fmt.Errorf("events: %w", err)
			}
			if *follow {
				return a.followEvents(ctx, f, out, filter, resp)
			}
			return out.message(resp, func(t *table) {
				eventTable(t, resp.GetEvents())
				t.empty("There are no events.")
			})
		})
	}
	return c
}

func eventTable(t *table, events []*redoubtv1.Event) {
	t.head("AGE", "OBJECT", "REASON", "MESSAGE")
	t.wide("COUNT", "FIRST", "NODE", "BY", "UID")
	for _, e := range events {
		t.row(eventObject(e), since(e.GetLast()), eventObject(e), eventReason(e), e.GetMessage(),
			e.GetCount(), since(e.GetFirst()), orDash(e.GetNode()), e.GetBy(), orDash(e.GetUid()))
	}
}

// eventObject names what an event is about; nodes and servers say what they are.
func eventObject(e *redoubtv1.Event) string {
	switch fleet.EventKind(e.GetKind()) {
	case fleet.EventWorkload, fleet.EventInstance:
		return named(e.GetNamespace(), e.GetName())
	}
	return strings.ToLower(e.GetKind()) + " " + e.GetName()
}

func eventReason(e *redoubtv1.Event) cell {
	c := cell{text: e.GetReason()}
	if e.GetCount() > 1 {
		c.text += fmt.Sprintf(" ×%d", e.GetCount())
	}
	if e.GetWarning() {
		c.colour = yellow
	}
	return c
}

// followEvents prints what there is and then what comes, until ctx ends. A
// connection that breaks is taken up again where it broke.
func (a *app) followEvents(ctx context.Context, f *connection, out *output, filter *redoubtv1.EventFilter, resp *redoubtv1.ListEventsResponse) error {
	if err := out.eventLines(resp.GetEvents()); err != nil {
		return err
	}
	filter.Since = nil // what comes is new
	for after := resp.GetSequence(); ; {
		stream, err := f.WatchEvents(ctx, &redoubtv1.WatchEventsRequest{Filter: filter, After: after})
		for err == nil {
			var m *redoubtv1.WatchEventsResponse
			if m, err = stream.Recv(); err != nil {
				break
			}
			if m.GetGap() {
				a.say("events: some that came meanwhile are kept no longer")
			}
			if err := out.eventLines(m.GetEvents()); err != nil {
				return err
			}
			after = m.GetSequence()
		}
		switch code := status.Code(err); {
		case ctx.Err() != nil:
			return ctx.Err()
		case !errors.Is(err, io.EOF) && code != codes.Unavailable && code != codes.Unknown && code != codes.Internal:
			return fmt.Errorf("events: %w", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lookEvery / 2):
		}
	}
}

// eventLines writes events one a line, with the time of day: what follows does
// not know how wide what came before was.
func (o *output) eventLines(events []*redoubtv1.Event) error {
	for _, e := range events {
		var line string
		switch o.format {
		case "json", "yaml":
			raw, err := protojson.Marshal(e)
			if err != nil {
				return fmt.Errorf("encode as JSON: %w", err)
			}
			if o.format == "yaml" {
				if _, err := io.WriteString(o.w, "---\n"); err != nil {
					return err
				}
				if err := o.raw(raw); err != nil {
					return err
				}
				continue
			}
			line = compact(raw)
		case "name":
			line = clean(eventObject(e))
		default:
			line = o.eventLine(e)
		}
		if _, err := io.WriteString(o.w, line+"\n"); err != nil {
			return err
		}
	}
	return nil
}

func (o *output) eventLine(e *redoubtv1.Event) string {
	pad := func(c cell, n int) string { return o.paint(c) + strings.Repeat(" ", max(n-width(c.text), 0)) }
	at := e.GetLast().AsTime().Local().Format("15:04:05")
	message := clean(e.GetMessage())
	if o.format == "wide" {
		message = strings.TrimSpace(fmt.Sprintf("%s (by %s, on %s)", message, clean(e.GetBy()), clean(orDash(e.GetNode()))))
	}
	object, reason := cell{text: eventObject(e)}, eventReason(e)
	s := at + "  " + pad(object, 16) + "  " + pad(reason, 16) + "  "
	if o.width > 0 {
		used := 8 + 2 + max(width(object.text), 16) + 2 + max(width(reason.text), 16) + 2
		message = shorten(message, max(o.width-used, 12))
	}
	return strings.TrimRight(s+message, " ")
}

// compact takes out the spaces that protojson varies on purpose.
func compact(raw []byte) string {
	var b strings.Builder
	quoted, escaped := false, false
	for _, c := range raw {
		if !quoted && (c == ' ' || c == '\n') {
			continue
		}
		switch {
		case escaped:
			escaped = false
		case c == '\\':
			escaped = true
		case c == '"':
			quoted = !quoted
		}
		b.WriteByte(c)
	}
	return b.String()
}

// eventsBeside writes the last events of something below its status. A fleet that
// keeps none, or shows none to this user, is no error there.
func (o *output) eventsBeside(ctx context.Context, f *connection, filter *redoubtv1.EventFilter, all string) error {
	if o.format != "table" && o.format != "wide" {
		return nil
	}
	resp, err := f.ListEvents(ctx, &redoubtv1.ListEventsRequest{Filter: filter, Last: besideLast})
	if err != nil || len(resp.GetEvents()) == 0 {
		return nil
	}
	var rows [][]string
	for _, e := range resp.GetEvents() {
		rows = append(rows, []string{since(e.GetLast()), eventObject(e), eventReason(e).text, e.GetMessage()})
	}
	total := o.width
	if total == 0 && o.format == "table" {
		total = 80
	}
	_, err = fmt.Fprintf(o.w, "\nLast events (`redoubt events %s` shows all that are kept)\n%s", all, clipped(columns("  ", rows), total))
	return err
}

// clipped shortens every line of a text; 0 leaves it.
func clipped(text string, n int) string {
	if n == 0 {
		return text
	}
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = shorten(l, n)
	}
	return strings.Join(lines, "\n")
}
