package highball_test

import (
	"os"
	"strings"
	"testing"
)

// TestReadme keeps the README's Go equal to what the compiler and the linters check: first a whole program, then a part
// of a function.
func TestReadme(t *testing.T) {
	parts := strings.Split(readme(t, "README.md"), "```go\n")
	if len(parts) != 3 {
		t.Fatalf("README.md has %d blocks of Go, this test knows 2", len(parts)-1)
	}
	for i, program := range []string{"examples/hello/main.go", "examples/hello/readme_test.go"} {
		source, err := os.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		block, _, _ := strings.Cut(parts[i+1], "```\n")
		if i > 0 {
			block = strings.ReplaceAll(strings.ReplaceAll("\n"+strings.TrimSpace(block), "\n", "\n\t"), "\n\t\n", "\n\n")
		}
		if !strings.Contains(string(source), block) {
			t.Errorf("README.md does not show %s as it is, but:\n%s", program, block)
		}
	}
}
