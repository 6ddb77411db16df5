//go:build containers

package containers

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v4"
)

// What the kubelet of these tests reads of a manifest. That it is a manifest at all is checked in
// deploy/kubernetes/check, against the API's own types.
type (
	kubeObject struct {
		Kind string `yaml:"kind"`
		Spec struct {
			MinReadySeconds int `yaml:"minReadySeconds"`
			Template        struct {
				Spec podSpec `yaml:"spec"`
			} `yaml:"template"`
			podSpec `yaml:",inline"`
		} `yaml:"spec"`
	}
	podSpec struct {
		HostNetwork     bool            `yaml:"hostNetwork"`
		Grace           int             `yaml:"terminationGracePeriodSeconds"`
		SecurityContext securityContext `yaml:"securityContext"`
		InitContainers  []containerSpec `yaml:"initContainers"`
		Containers      []containerSpec `yaml:"containers"`
		Volumes         []struct {
			Name     string `yaml:"name"`
			HostPath *struct {
				Path string `yaml:"path"`
			} `yaml:"hostPath"`
			EmptyDir *struct{} `yaml:"emptyDir"`
		} `yaml:"volumes"`
	}
	containerSpec struct {
		Name    string   `yaml:"name"`
		Image   string   `yaml:"image"`
		Command []string `yaml:"command"`
		Args    []string `yaml:"args"`
		Env     []struct {
			Name      string `yaml:"name"`
			Value     string `yaml:"value"`
			ValueFrom struct {
				FieldRef struct {
					FieldPath string `yaml:"fieldPath"`
				} `yaml:"fieldRef"`
			} `yaml:"valueFrom"`
		} `yaml:"env"`
		SecurityContext securityContext `yaml:"securityContext"`
		Startup         *probe          `yaml:"startupProbe"`
		Readiness       *probe          `yaml:"readinessProbe"`
		Liveness        *probe          `yaml:"livenessProbe"`
		VolumeMounts    []struct {
			Name      string `yaml:"name"`
			MountPath string `yaml:"mountPath"`
		} `yaml:"volumeMounts"`
	}
	securityContext struct {
		RunAsUser                *int  `yaml:"runAsUser"`
		RunAsGroup               *int  `yaml:"runAsGroup"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		Capabilities             struct {
			Drop []string `yaml:"drop"`
			Add  []string `yaml:"add"`
		} `yaml:"capabilities"`
	}
	probe struct {
		Exec struct {
			Command []string `yaml:"command"`
		} `yaml:"exec"`
		PeriodSeconds    int  `yaml:"periodSeconds"`
		TimeoutSeconds   int  `yaml:"timeoutSeconds"`
		FailureThreshold int  `yaml:"failureThreshold"`
		Grace            *int `yaml:"terminationGracePeriodSeconds"`
	}
)

// readManifest is the object of that kind in a file of deploy/kubernetes, with the image under test.
func readManifest(t *testing.T, file, kind string) kubeObject {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../deploy/kubernetes", file))
	require.NoError(t, err)
	docs := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var o kubeObject
		err := docs.Decode(&o)
		require.False(t, errors.Is(err, io.EOF), "%s has no %s", file, kind)
		require.NoError(t, err, file)
		if o.Kind != kind {
			continue
		}
		for _, p := range []*podSpec{&o.Spec.podSpec, &o.Spec.Template.Spec} {
			for i := range p.InitContainers {
				p.InitContainers[i].Image = image
			}
			for i := range p.Containers {
				p.Containers[i].Image = image
			}
		}
		return o
	}
}

// server is the one container of the pod that serves.
func (p podSpec) server(t *testing.T) *containerSpec {
	t.Helper()
	require.Len(t, p.Containers, 1)
	return &p.Containers[0]
}

// with is the container with one argument in the place of the one that begins likewise, up to "=".
func (c containerSpec) with(t *testing.T, arg string) containerSpec {
	t.Helper()
	flag, _, _ := strings.Cut(arg, "=")
	args := append([]string(nil), c.Args...)
	for i, a := range args {
		if strings.HasPrefix(a, flag+"=") {
			args[i] = arg
			c.Args = args
			return c
		}
	}
	require.Fail(t, "no such argument", "%s: %s", c.Name, flag)
	return c
}
