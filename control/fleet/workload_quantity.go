package fleet

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Quantities are written as in Kubernetes: cpu as cores ("0.5", "2") or
// thousandths ("500m"), memory as bytes with an optional unit, decimal (k M G T)
// or binary (Ki Mi Gi Ti).

var (
	cpuPattern    = pattern(`^([0-9]{1,9})(\.[0-9]{1,3})?$|^([0-9]{1,12})m$`)
	memoryPattern = pattern(`^([0-9]{1,18})(\.[0-9]{1,6})?(k|M|G|T|Ki|Mi|Gi|Ti)?$`)
	memoryUnits   = map[string]float64{
		"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
		"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
	}
	// looseMemory reads what people write by mistake, for the hint.
	looseMemory = pattern(`(?i)^\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt])(i?)b?\s*$`)
)

// ParseCPU reads thousandths of a core. The error needs no more context than
// the field's path.
func ParseCPU(s string) (int64, error) {
	m := cpuPattern().FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("%q is not a quantity of cpu%s", clip(s), cpuHint(s))
	}
	if m[3] != "" {
		return strconv.ParseInt(m[3], 10, 64)
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a quantity of cpu", clip(s))
	}
	return int64(math.Round(v * 1000)), nil
}

func cpuHint(s string) string {
	t := strings.TrimSpace(s)
	if n := strings.TrimSuffix(t, "%"); n != t {
		if v, err := strconv.ParseUint(n, 10, 31); err == nil {
			return fmt.Sprintf("; did you mean \"%dm\"?", v*10)
		}
	}
	if n := strings.TrimRight(strings.ToLower(t), "milcpuores "); n != t {
		if _, err := strconv.ParseUint(n, 10, 31); err == nil {
			return fmt.Sprintf("; did you mean \"%sm\" or %q?", n, n)
		}
	}
	return `: write cores ("0.5", "2") or thousandths ("500m")`
}

// ParseMemory reads bytes.
func ParseMemory(s string) (int64, error) {
	m := memoryPattern().FindStringSubmatch(s)
	if m == nil {
		hint := `: write bytes with an optional unit, "64Mi" or "64M"`
		if l := looseMemory().FindStringSubmatch(s); l != nil {
			u := strings.ToUpper(l[2])
			dec := u
			if u == "K" {
				dec = "k"
			}
			hint = fmt.Sprintf("; did you mean \"%s%si\" or \"%s%s\"?", l[1], u, l[1], dec)
			if l[3] != "" {
				hint = fmt.Sprintf("; did you mean \"%s%si\"?", l[1], u)
			}
		}
		if plain := looseMemory().FindStringSubmatch(s); plain != nil && len(plain[1]) > 15 {
			hint = ", and more than any machine has"
		}
		return 0, fmt.Errorf("%q is not a quantity%s", clip(s), hint)
	}
	if m[2] == "" {
		n, err := strconv.ParseInt(m[1], 10, 64)
		unit := int64(memoryUnits[m[3]])
		if err != nil || n > math.MaxInt64/unit {
			return 0, fmt.Errorf("%q is more than any machine has", clip(s))
		}
		return n * unit, nil
	}
	v, err := strconv.ParseFloat(m[1]+m[2], 64)
	v *= memoryUnits[m[3]]
	switch {
	case err != nil || v >= math.MaxInt64/2:
		return 0, fmt.Errorf("%q is more than any machine has", clip(s))
	case v != math.Trunc(v):
		return 0, fmt.Errorf("%q is not a whole number of bytes", clip(s))
	}
	return int64(v), nil
}

// FormatCPU writes thousandths of a core, so that ParseCPU reads them back.
func FormatCPU(millis int64) string {
	if millis%1000 == 0 {
		return strconv.FormatInt(millis/1000, 10)
	}
	return strconv.FormatInt(millis, 10) + "m"
}

// FormatMemory writes bytes exactly, in the largest unit that divides them, so
// that ParseMemory reads them back.
func FormatMemory(bytes int64) string {
	if bytes == 0 {
		return "0"
	}
	for _, u := range []string{"Ti", "Gi", "Mi", "Ki", "T", "G", "M", "k"} {
		if unit := int64(memoryUnits[u]); bytes%unit == 0 {
			return strconv.FormatInt(bytes/unit, 10) + u
		}
	}
	return strconv.FormatInt(bytes, 10)
}

// clip keeps a person's text short enough to be quoted in an error.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
