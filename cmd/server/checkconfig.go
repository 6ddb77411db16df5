package main

import (
	"io"
	"strings"

	"go.yaml.in/yaml/v4"
)

// print writes the configuration as a file that says the same, with where each
// value came from. What is empty is left out.
func (s *schema) print(w io.Writer) error {
	root := &yaml.Node{Kind: yaml.MappingNode}
	for _, f := range s.configurable() {
		values := valueOf(f)
		if len(values) == 0 || values[0] == "" {
			continue
		}
		from, given := s.origins[f.Name]
		if !given && f.Value.String() == "0s" {
			continue // it stands for another default, which is not written down
		}
		comment := "default"
		if given {
			comment = strings.TrimSuffix(from.of(f.Name), ": "+f.Name)
		}
		key := scalar("string", f.Name)
		value := scalar(f.Value.Type(), values[0])
		if repeatable(f) {
			value = &yaml.Node{Kind: yaml.SequenceNode}
			for _, v := range values {
				value.Content = append(value.Content, scalar("string", v))
			}
			key.LineComment = comment
		} else {
			value.LineComment = comment
		}
		root.Content = append(root.Content, key, value)
	}
	text, err := yaml.Dump(root)
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

// scalar is a value of a flag of that type.
func scalar(flagType, value string) *yaml.Node {
	n := &yaml.Node{}
	switch flagType {
	case "bool", "int":
		n.Kind, n.Tag, n.Value = yaml.ScalarNode, "!!"+flagType, value
	default:
		n.SetString(value)
	}
	return n
}
