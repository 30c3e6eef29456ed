package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"redoubt.dev/redoubt/cmd/redoubt/cli"
)

// shapeFile names the file that misshapen errors of the scripts' commands go to.
const shapeFile = "TEST_SHAPE_FILE"

// shaped runs the command and holds what it says of an error against the shape
// that every error has.
func shaped(env cli.Env) int {
	var said bytes.Buffer
	env.Stderr = io.MultiWriter(env.Stderr, &said)
	code := cli.Run(context.Background(), env)
	if code != 2 {
		return code
	}
	if fault := misshapen(said.String()); fault != "" {
		f, err := os.OpenFile(os.Getenv(shapeFile), os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(f, "redoubt %s: %s:\n%s", strings.Join(env.Args, " "), fault, said.String())
		f.Close()
	}
	return code
}

var (
	// An error begins with the program, or with the file and the place in it.
	beginsRight = regexp.MustCompile(`(?m)^(redoubt: |[^ \n]+: (line \d+|document \d+|[a-z]))`)
	// What no person should have to read.
	internals = regexp.MustCompile(`rpc error|desc = |%!|&\{|<nil>|0xc0|goroutine |runtime error|status\.|\*errors\.|context deadline exceeded$`)
	// It tells what to do, or what would have been right.
	remedy = regexp.MustCompile("`|usage: |[Dd]id you mean|; |\\?$|--[a-z]|: (write|give|use|name|choose)|at least|at most|between|which is|chmod |is not|is none|is no|neither|must |there are: ")
)

// misshapen says in what an error's text is not of the one shape: what went
// wrong and where, and what to do; "" if it is.
func misshapen(text string) string {
	switch {
	case !beginsRight.MatchString(text):
		return "it does not say whose error it is"
	case internals.MatchString(text):
		return "it shows what is inside of the program"
	case !remedy.MatchString(text):
		return "it does not say what to do"
	}
	return ""
}
