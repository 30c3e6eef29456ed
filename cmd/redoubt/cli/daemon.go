package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"gopkg.in/yaml.v3"

	words "redoubt.dev/redoubt/control/fleet"
)

// maxConfig bounds a configuration file, bytes.
const maxConfig = 1 << 20

// secretFlags hold secrets: they come from a file, never from the environment,
// which other processes can read.
var secretFlags = []string{"token", "token-file"}

// daemon adds what every long-running verb has: a configuration file whose keys
// are the names of the flags, the same in the environment, and logging. Flags
// go before the environment, that before the file.
func (a *app) daemon(c *cobra.Command) *cobra.Command {
	file := c.Flags().String("config", "", "YAML `FILE` whose keys are the names of these flags (REDOUBT_CONFIG)")
	level, format := logFlags(c.Flags())
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := a.configure(c.Flags(), *file); err != nil {
			return err
		}
		log, err := a.logger(*level, *format)
		if err != nil {
			return err
		}
		a.log = log
		return run(c, args)
	}
	return c
}

func logFlags(fs *pflag.FlagSet) (level, format *string) {
	level = fs.String("log-level", "info", "debug, info, warn or error")
	format = fs.String("log-format", "text", "text or json")
	return level, format
}

func (a *app) logger(level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q is none of debug, info, warn, error", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	out := io.MultiWriter(a.Stderr, &a.recent)
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(out, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(out, opts)), nil
	}
	return nil, fmt.Errorf("--log-format %q is neither text nor json", format)
}

// configure fills flags that were not given from the environment and the file.
func (a *app) configure(flags *pflag.FlagSet, path string) error {
	if path == "" {
		path = a.Getenv("REDOUBT_CONFIG")
	}
	fromFile, err := readConfig(path)
	if err != nil {
		return err
	}
	var errs []error
	known := map[string]bool{}
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" || f.Name == "config" {
			return
		}
		known[f.Name] = true
		if f.Changed {
			return
		}
		env := "REDOUBT_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v := a.Getenv(env); v != "" && !slices.Contains(secretFlags, f.Name) {
			if err := flags.Set(f.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", env, err))
			}
			return
		}
		if v, ok := fromFile[f.Name]; ok {
			for _, one := range v.values {
				if err := flags.Set(f.Name, one); err != nil {
					errs = append(errs, fmt.Errorf("%s: line %d: %s: %w", path, v.line, f.Name, err))
				}
			}
		}
	})
	names := make([]string, 0, len(known))
	for n := range known {
		names = append(names, n)
	}
	slices.Sort(names)
	for key, v := range fromFile {
		if !known[key] {
			hint := ""
			if near := words.Nearest(key, names); near != "" {
				hint = fmt.Sprintf(". Did you mean %q?", near)
			}
			errs = append(errs, fmt.Errorf("%s: line %d: unknown key %q%s", path, v.line, key, hint))
		}
	}
	return errors.Join(errs...)
}

type configValue struct {
	line   int
	values []string
}

// readConfig reads a flat mapping of scalars and lists of scalars.
func readConfig(path string) (map[string]configValue, error) {
	out := map[string]configValue{}
	if path == "" {
		return out, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > maxConfig {
		return nil, fmt.Errorf("%s has more than %d bytes: it is no configuration", path, maxConfig)
	}
	var doc, more yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := dec.Decode(&more); err == nil {
		return nil, fmt.Errorf("%s: line %d: a second document begins: a configuration is one", path, more.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s: line %d: it must be a mapping of names to values", path, root.Line)
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		if _, twice := out[key.Value]; twice {
			return nil, fmt.Errorf("%s: line %d: %q stands there twice", path, key.Line, key.Value)
		}
		v := configValue{line: key.Line}
		items := []*yaml.Node{value}
		if value.Kind == yaml.SequenceNode {
			items = value.Content
		}
		for _, item := range items {
			if item.Kind != yaml.ScalarNode {
				return nil, fmt.Errorf("%s: line %d: %s must be a value or a list of values", path, item.Line, key.Value)
			}
			v.values = append(v.values, item.Value)
		}
		out[key.Value] = v
	}
	return out, nil
}

// secretFile reads a secret that a file holds; "-" is standard input.
func (a *app) secretFile(path string) (string, error) {
	var data []byte
	var err error
	if path == "-" {
		data, err = io.ReadAll(io.LimitReader(a.Stdin, 64<<10))
	} else {
		data, err = os.ReadFile(path)
	}
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// joinToken is the token that --token-file or --token gives; - is standard
// input for both.
func (a *app) joinToken(token, file string) (string, error) {
	switch {
	case token != "" && file != "":
		return "", errors.New("give --token or --token-file, not both")
	case token == "-":
		return a.secretFile(token)
	case file != "":
		return a.secretFile(file)
	}
	return token, nil
}

// tokenFlags are the ways to give a join token.
func tokenFlags(fs *pflag.FlagSet) (token, file *string) {
	token = fs.String("token", "", "the join `TOKEN`; other users of this host can see it while this runs, and the shell remembers it, so rather use --token-file; - is standard input")
	file = fs.String("token-file", "", "`FILE` that holds the join token; - is standard input")
	return token, file
}

// supervised runs a daemon and tells the supervisor that started it how it is.
// The daemon calls ready itself.
func (a *app) supervised(ctx context.Context, run func(ctx context.Context, ready func(status string)) error) error {
	alive, stop := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error { return a.Notify.Run(alive) })
	err := run(ctx, func(status string) {
		if err := a.Notify.Ready(status); err != nil {
			a.log.Warn("the supervisor is not told that this is ready", "err", err)
		}
	})
	stop()
	if told := g.Wait(); err == nil && told != nil {
		a.log.Warn("the supervisor is not told that this ends", "err", told)
	}
	return err
}
