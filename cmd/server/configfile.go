package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v4"
)

// readFile sets what a YAML file says. JSON is read too, being YAML. It returns
// everything that is wrong.
func (s *schema) readFile(path string) []error {
	text, err := os.ReadFile(path)
	if err != nil {
		return []error{fmt.Errorf("%s: the configuration can't be read: %w", path, withoutPath(err))}
	}
	var docs []yaml.Node
	if err := yaml.Load(text, &docs, yaml.WithAllDocuments()); err != nil {
		return []error{fmt.Errorf("%s: this is neither YAML nor JSON: %w", path, err)}
	}
	if len(docs) > 1 {
		return []error{fmt.Errorf("%s: there are %d documents, one is expected", path, len(docs))}
	}
	if len(docs) == 0 || len(docs[0].Content) == 0 || docs[0].Content[0].ShortTag() == "!!null" {
		return nil // only comments
	}
	root := docs[0].Content[0]
	if root.Kind != yaml.MappingNode {
		return []error{fmt.Errorf("%s:%d: keys with values are expected, such as label: v1", path, root.Line)}
	}
	var errs []error
	seen := map[string]int{}
	for i := 0; i < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		at := fmt.Sprintf("%s:%d", path, key.Line)
		if line, again := seen[key.Value]; again {
			errs = append(errs, fmt.Errorf("%s: the key %q stands in line %d already", at, key.Value, line))
			continue
		}
		seen[key.Value] = key.Line
		if err := s.setFromFile(at, key, value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", at, err))
		}
	}
	return errs
}

func (s *schema) setFromFile(at string, key, value *yaml.Node) error {
	var known []string
	for _, f := range s.configurable() {
		known = append(known, f.Name)
		if key.Kind != yaml.ScalarNode || f.Name != key.Value {
			continue
		}
		values, err := fileValues(f, value)
		if err == nil {
			err = s.set(f, origin{file: at}, values)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		return nil
	}
	if s.Lookup(key.Value) != nil {
		return fmt.Errorf("%s belongs on the command line", key.Value)
	}
	return fmt.Errorf("unknown key %q%s", key.Value, didYouMean(key.Value, known))
}

// fileValues returns a flag's values as text, having looked at the types that
// YAML gave them: what was meant by a value of another type is not guessed.
func fileValues(f *pflag.Flag, value *yaml.Node) ([]string, error) {
	if !repeatable(f) {
		text, err := fileValue(f.Value.Type(), value)
		return []string{text}, err
	}
	if value.Kind != yaml.SequenceNode {
		return nil, errors.New(`a list is expected, such as [":8080"]`)
	}
	values := []string{}
	for _, item := range value.Content {
		text, err := fileValue("string", item)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", item.Line, err)
		}
		values = append(values, text)
	}
	return values, nil
}

func fileValue(want string, value *yaml.Node) (string, error) {
	tag := value.ShortTag()
	switch {
	case value.Kind == yaml.AliasNode:
		return "", errors.New("aliases are not followed: write the value out")
	case value.Kind == yaml.MappingNode:
		return "", errors.New("a single value is expected, not keys with values")
	case value.Kind != yaml.ScalarNode:
		return "", errors.New("a single value is expected, not a list")
	case tag == "!!null":
		return "", errors.New("it has no value: leave the key out, or write one")
	case want == "bool":
		if tag != "!!bool" {
			return "", fmt.Errorf("true or false is expected, not %q", value.Value)
		}
	case want == "duration":
		if tag != "!!str" && value.Value != "0" {
			return "", fmt.Errorf("a duration such as 30s is expected, not %s", value.Value)
		}
	case want == "int":
		if tag != "!!int" {
			return "", fmt.Errorf("a number is expected, not %q", value.Value)
		}
	case tag != "!!str":
		return "", fmt.Errorf("text is expected: write %q, in quotes", value.Value)
	}
	return value.Value, nil
}

// didYouMean is a hint at what a word was meant to be, or "".
func didYouMean(word string, known []string) string {
	best, least := "", len(word)/3+2 // farther off it would mislead
	for _, k := range known {
		if d := editDistance(word, k); d < least {
			best, least = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// editDistance is how many bytes must be put in, left out or exchanged to make b of a.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
