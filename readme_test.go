package highball_test

import (
	"os"
	"strings"
	"testing"
)

// TestReadme keeps the README's first Go block equal to the program it shows, which the compiler and the
// linters check.
func TestReadme(t *testing.T) {
	const program = "examples/hello/main.go"
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(readme), "```go\n")
	got, _, _ := strings.Cut(after, "```\n")
	if got != string(want) {
		t.Errorf("README.md does not show %s as it is", program)
	}
}
