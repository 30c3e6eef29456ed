package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"redoubt.dev/redoubt/control/fleet"
)

// foreign are verbs of docker and kubectl, and what does the same here.
var foreign = map[string]string{
	"describe": "`redoubt workload status NAME`, `redoubt explain NAME` or `redoubt node status NODE`", "inspect": "`redoubt workload status NAME`, with -o json for all of it",
	"delete": "`redoubt stop NAME`", "rm": "`redoubt stop NAME`", "kill": "`redoubt stop NAME`", "down": "`redoubt stop NAME`",
	"create": "`redoubt apply FILE`", "up": "`redoubt apply FILE`", "deploy": "`redoubt apply FILE`", "edit": "`redoubt apply FILE` with a changed file",
	"scale": "`redoubt apply FILE`, with another number in placement.replicas", "restart": "`redoubt stop NAME --wait`, then `redoubt apply FILE`",
	"rollout": "`redoubt workload status NAME`", "attach": "`redoubt logs -f NAME` or `redoubt exec NAME -it -- sh`", "diff": "`redoubt plan FILE`",
	"config": "`redoubt context`", "use-context": "`redoubt context use NAME`", "login": "`redoubt context add NAME FILE`",
	"nodes": "`redoubt node list`", "pods": "`redoubt ps`", "workloads": "`redoubt get`", "ls": "`redoubt get`", "list": "`redoubt get`", "top": "`redoubt node list`", "stats": "`redoubt node list`",
	"info": "`redoubt node list` or `redoubt doctor`", "start": "`redoubt run IMAGE` or `redoubt apply FILE`", "join": "`redoubt agent install` or `redoubt server install`",
	"pull": "nothing: an image is pulled where it is needed", "build": "nothing: build with another tool, and push to a registry or use an OCI layout (oci:/directory)",
}

// foreignFlags are flags of docker and kubectl by verb, and what to do here.
var foreignFlags = map[string]map[string]string{
	"run": {
		"i": "start it with -d, then `redoubt exec NAME -it -- sh`", "t": "start it with -d, then `redoubt exec NAME -it -- sh`",
		"interactive": "start it with -d, then `redoubt exec NAME -it -- sh`", "tty": "start it with -d, then `redoubt exec NAME -it -- sh`",
		"v": "volumes are in a workload file: docs/workload.md", "volume": "volumes are in a workload file: docs/workload.md", "mount": "volumes are in a workload file: docs/workload.md",
		"image": "the image is the first argument", "restart": "what should run on is a Service in a workload file: docs/workload.md",
	},
	"get":    {"A": "without --namespace it lists all that you may see", "all-namespaces": "without --namespace it lists all that you may see", "l": "there are no label selectors yet"},
	"ps":     {"a": "it lists ended instances too, as long as they are known", "A": "without --namespace it lists all that you may see"},
	"logs":   {"c": "an instance has one container", "n": "-n is --namespace here; lines are --tail N"},
	"exec":   {"c": "an instance has one container"},
	"stop":   {"f": "name the workloads; a file is not read", "force": "each instance has its grace period, then it is killed"},
	"events": {"A": "without --namespace it lists all that you may see"},
}

// nounArgs refuses a verb that is none.
func nounArgs(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var verbs []string
	for _, v := range c.Commands() {
		if v.IsAvailableCommand() {
			verbs = append(verbs, v.Name())
		}
	}
	msg := fmt.Sprintf("there is no verb %q", args[0])
	if c.HasParent() {
		msg = fmt.Sprintf("%s has no verb %q", verbPath(c), args[0])
	} else if here, ok := foreign[args[0]]; ok {
		return fmt.Errorf("%s here; for that there is %s", msg, here)
	}
	if near := fleet.Nearest(args[0], verbs); near != "" {
		return fmt.Errorf("%s. Did you mean %q?", msg, near)
	}
	if !c.HasParent() { // too many for a line
		return fmt.Errorf("%s; `redoubt --help` lists them", msg)
	}
	return fmt.Errorf("%s; it is one of %s", msg, strings.Join(verbs, ", "))
}

func verbPath(c *cobra.Command) string { return strings.TrimPrefix(c.CommandPath(), "redoubt ") }

// flagError says which flag a person most likely meant, or what does the same.
func (a *app) flagError(c *cobra.Command, err error) error {
	if !c.HasParent() { // a verb that is none hides behind its flags
		if i := slices.IndexFunc(a.Args, func(w string) bool { return !strings.HasPrefix(w, "-") }); i >= 0 && a.context == "" {
			if wrong := nounArgs(c, a.Args[i:]); wrong != nil {
				return wrong
			}
		}
	}
	verb := verbPath(c)
	var none *pflag.NotExistError
	if !errors.As(err, &none) {
		return fmt.Errorf("%s: %w; `%s --help` shows the flags", verb, err, c.CommandPath())
	}
	name := none.GetSpecifiedName()
	if here, ok := foreignFlags[c.Name()][name]; ok {
		return fmt.Errorf("%s: %w; %s", verb, err, here)
	}
	var flags []string
	add := func(f *pflag.Flag) {
		if !f.Hidden {
			flags = append(flags, f.Name)
		}
	}
	c.Flags().VisitAll(add)
	c.InheritedFlags().VisitAll(add)
	if near := fleet.Nearest(name, flags); near != "" && len(name) > 1 {
		return fmt.Errorf("%s: %w. Did you mean \"--%s\"?", verb, err, near)
	}
	return fmt.Errorf("%s: %w; `%s --help` shows the flags", verb, err, c.CommandPath())
}
