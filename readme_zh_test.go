package highball_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestReadmesSayTheSame keeps the Chinese README in step: the same headings, code, links and figures.
func TestReadmesSayTheSame(t *testing.T) {
	english, chinese := readme(t, "README.md"), readme(t, "README.zh-CN.md")
	for what, parts := range map[string]func(string) []string{
		"levels of headings": levels,
		"blocks of code":     func(s string) []string { return blocks.FindAllString(s, -1) },
		"links":              links,
		"figures in tables":  figures,
	} {
		en, zh := parts(english), parts(chinese)
		if len(en) == 0 {
			t.Errorf("README.md has no %s", what)
		}
		for i := range max(len(en), len(zh)) {
			if i >= len(en) || i >= len(zh) || en[i] != zh[i] {
				t.Errorf("%s differ from the %d. on:\n%q\n%q", what, i+1, en[min(i, len(en)):min(i+1, len(en))], zh[min(i, len(zh)):min(i+1, len(zh))])
				break
			}
		}
	}
}

var (
	blocks = regexp.MustCompile("(?s)```.*?```")
	link   = regexp.MustCompile(`\]\(([^)]+)\)`)
	number = regexp.MustCompile(`\d+(?:[.,]\d+)*`)
)

func readme(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func levels(s string) (all []string) {
	for line := range strings.Lines(blocks.ReplaceAllString(s, "")) {
		if strings.HasPrefix(line, "#") {
			all = append(all, line[:strings.IndexByte(line, ' ')])
		}
	}
	return all
}

func links(s string) (all []string) {
	for _, found := range link.FindAllStringSubmatch(s, -1) {
		if !strings.HasPrefix(found[1], "README") {
			all = append(all, found[1])
		}
	}
	return all
}

// figures are those of each row, in any order: languages differ in that.
func figures(s string) (all []string) {
	for line := range strings.Lines(s) {
		if strings.HasPrefix(line, "|") {
			in := number.FindAllString(line, -1)
			slices.Sort(in)
			all = append(all, strings.Join(in, " "))
		}
	}
	return all
}

// TestLinksOfTheReadmeLeadSomewhere follows those to files of this repository.
func TestLinksOfTheReadmeLeadSomewhere(t *testing.T) {
	for _, to := range links(readme(t, "README.md")) {
		if strings.HasPrefix(to, "http") {
			continue
		}
		if _, err := os.Stat(filepath.FromSlash(to)); err != nil {
			t.Error(err)
		}
	}
}
