// Package workloadfile reads the file that a person applies: YAML or JSON, one
// workload a document, strict. What is not understood is an error that names
// the line, the column and the nearest thing that would have been; up to
// MaxErrors are reported at once, and nothing is returned beside an error.
//
// It needs no control plane: the field names are the API's own (JSON names of
// redoubt.v1.Workload), and the rules are those that the control plane applies
// again (control/fleet), with their field paths mapped back to lines.
//
// Everything is bounded: the size of a file, its documents and its errors.
// Anchors and aliases are refused, so no input grows when it is read.
package workloadfile
