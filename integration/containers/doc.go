// Package containers holds the tests that hand over between real containers, by the recipes in deploy/ and docs/, under
// load. They have the build tag containers, and need root, Docker and the image: "make test-containers" has it all.
package containers
