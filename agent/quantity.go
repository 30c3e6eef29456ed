package agent

import (
	"fmt"
	"math"
	"math/big"
	"strings"
)

// The control plane has checked every quantity; the agent reads them again,
// strictly, since it acts on what is on its disk.

var memoryUnits = []struct {
	suffix string
	factor int64
}{
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40},
	{"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"", 1},
}

// memoryBytes reads a quantity of memory; a part of a byte counts as one.
func memoryBytes(s string) (int64, error) {
	for _, u := range memoryUnits {
		if number, ok := strings.CutSuffix(s, u.suffix); ok {
			return scaled(s, number, u.factor)
		}
	}
	return 0, fmt.Errorf("%q is not a quantity", s)
}

// cpuMillis reads a quantity of CPU as thousandths of a core.
func cpuMillis(s string) (int64, error) {
	if number, ok := strings.CutSuffix(s, "m"); ok {
		return scaled(s, number, 1)
	}
	return scaled(s, s, 1000)
}

// count reads a whole number.
func count(s string) (int64, error) {
	if strings.Contains(s, ".") {
		return 0, fmt.Errorf("%q is not a whole number", s)
	}
	return scaled(s, s, 1)
}

func scaled(whole, number string, factor int64) (int64, error) {
	if number == "" || len(number) > 20 || strings.Trim(number, "0123456789.") != "" || strings.Count(number, ".") > 1 || number[0] == '.' || number[len(number)-1] == '.' {
		return 0, fmt.Errorf("%q is not a quantity", whole)
	}
	r, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, fmt.Errorf("%q is not a quantity", whole)
	}
	r.Mul(r, new(big.Rat).SetInt64(factor))
	n := new(big.Int).Add(r.Num(), new(big.Int).Sub(r.Denom(), big.NewInt(1)))
	n.Quo(n, r.Denom()) // rounded up
	if !n.IsInt64() || n.Int64() > math.MaxInt64/2 {
		return 0, fmt.Errorf("%q is too large", whole)
	}
	return n.Int64(), nil
}
