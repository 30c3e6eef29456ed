package cli

import (
	"fmt"
	"strings"

	"redoubt.dev/redoubt/deploy/install"
)

// showSteps prints all that would be done, with modes and contents; pages that
// would go as one.
func (a *app) showSteps(steps []install.Step) {
	pages := 0
	for _, s := range steps {
		if s.Verb == install.Remove && isPage(s.What) {
			pages++
		}
	}
	for _, s := range steps {
		if s.Verb == install.Remove && isPage(s.What) {
			if pages > 0 {
				a.showStep(install.Step{Verb: s.Verb, What: plural(pages, "manual page or completion", "manual pages and completions") + " below /usr/local/share"}, "")
			}
			pages = 0
			continue
		}
		mode := ""
		if s.Mode != 0 {
			mode = fmt.Sprintf("%04o", s.Mode)
		}
		a.showStep(s, mode)
		if !s.Changes() || s.Content == nil {
			continue
		}
		for line := range strings.Lines(string(s.Content)) {
			fmt.Fprint(a.Stdout, strings.TrimRight("           | "+line, " \n")+"\n")
		}
	}
	a.say("Nothing of this was done.")
}

func (a *app) showStep(s install.Step, mode string) {
	line := fmt.Sprintf("%-8s", s.Verb) + " " + s.What
	if mode != "" {
		line = fmt.Sprintf("%-8s", s.Verb) + " " + mode + " " + s.What
	}
	if s.Note == "" {
		fmt.Fprintln(a.Stdout, line)
		return
	}
	if width(line)+2+width(s.Note) <= a.prose() {
		fmt.Fprintln(a.Stdout, line+"  "+s.Note)
		return
	}
	fmt.Fprint(a.Stdout, line+"\n"+hang("         ", s.Note, a.prose()))
}

// tellSteps returns what tells of steps that are done: changes, and what was
// kept otherwise than it would be written; pages as one.
func (a *app) tellSteps() func(install.Step) {
	told := map[install.Verb]bool{}
	return func(s install.Step) {
		if !s.Changes() && s.Verb != install.Keep {
			return
		}
		if isPage(s.What) {
			if !told[s.Verb] {
				told[s.Verb] = true
				a.showStep(install.Step{Verb: s.Verb, What: "manual pages and completions below /usr/local/share"}, "")
			}
			return
		}
		a.showStep(s, "")
	}
}
