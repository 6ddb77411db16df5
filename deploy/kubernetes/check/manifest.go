package main

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// manifest is what a file has of the kinds that are known here.
type manifest struct {
	sets     []*appsv1.DaemonSet
	pods     []*corev1.Pod
	services []*corev1.Service
}

// decode takes YAML documents as the API server does with "fieldValidation=Strict": a field that its type does not have,
// or that stands twice, is an error. So is a kind that is not checked here.
func decode(text []byte) (manifest, error) {
	var m manifest
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return manifest{}, fmt.Errorf("document %d: %w", n, err)
		}
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &kind); err != nil {
			return manifest{}, fmt.Errorf("document %d: %w", n, err)
		}
		switch kind.GroupVersionKind().String() {
		case appsv1.SchemeGroupVersion.WithKind("DaemonSet").String():
			err = take(doc, &m.sets)
		case corev1.SchemeGroupVersion.WithKind("Pod").String():
			err = take(doc, &m.pods)
		case corev1.SchemeGroupVersion.WithKind("Service").String():
			err = take(doc, &m.services)
		default:
			err = fmt.Errorf("kind %q of %q is not checked here", kind.Kind, kind.APIVersion)
		}
		if err != nil {
			return manifest{}, fmt.Errorf("document %d: %w", n, err)
		}
	}
	if len(m.sets)+len(m.pods) == 0 {
		return manifest{}, errors.New("there is neither a DaemonSet nor a Pod")
	}
	return m, nil
}

func take[T any](doc []byte, list *[]*T) error {
	// yaml.UnmarshalStrict would take maxsurge for maxSurge, as encoding/json does.
	text, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return err
	}
	object := new(T)
	unknown, err := json.UnmarshalStrict(text, object)
	if err := errors.Join(append(unknown, err)...); err != nil {
		return err
	}
	*list = append(*list, object)
	return nil
}

// workload is a pod, or the template of one, and what owns it.
type workload struct {
	name string // kind and name
	set  *appsv1.DaemonSet
	meta metav1.ObjectMeta
	spec corev1.PodSpec
}

func (m manifest) workloads() (all []workload) {
	for _, s := range m.sets {
		all = append(all, workload{"daemonset/" + s.Name, s, s.Spec.Template.ObjectMeta, s.Spec.Template.Spec})
	}
	for _, p := range m.pods {
		all = append(all, workload{"pod/" + p.Name, nil, p.ObjectMeta, p.Spec})
	}
	return all
}

// problems are what the rules find.
func (m manifest) problems() (all []string) {
	for _, w := range m.workloads() {
		for _, r := range rules {
			for _, p := range r.check(w) {
				all = append(all, fmt.Sprintf("%s: %s: %s", w.name, r.name, p))
			}
		}
		for _, s := range m.services {
			for _, p := range checkService(w, s) {
				all = append(all, fmt.Sprintf("service/%s: %s: %s", s.Name, ruleService, p))
			}
		}
	}
	return all
}

// servers are the containers that hand over: those with a control socket.
func (w workload) servers() (all []server) {
	for _, c := range w.spec.Containers {
		s := server{Container: c, spec: w.spec}
		if s.setting("socket") != "" {
			all = append(all, s)
		}
	}
	return all
}

// server is a container that hands over.
type server struct {
	corev1.Container
	spec corev1.PodSpec
}

// defaults are those of the program server, where they are not nothing; TestDefaults compares them with its help.
var defaults = map[string]string{
	"takeover": "auto", "ready-timeout": "30s", "step-timeout": "5s",
	"probation": "5s", "drain-timeout": "30s", "stop-delay": "0s",
}

// setting is what the container's program is told: by a flag, by the environment, or by nothing, in which order the
// program looks, too. What an image has in its environment is not seen here.
func (s server) setting(flag string) string {
	if v, ok := flagOf(slices.Concat(s.Command, s.Args), flag); ok {
		return v
	}
	name, value := "HANDOFF_"+strings.ToUpper(strings.ReplaceAll(flag, "-", "_")), ""
	for _, e := range s.Env {
		if e.Name == name { // the last one, as the kubelet has it
			value = e.Value
		}
	}
	if value != "" {
		return value
	}
	return defaults[flag]
}

// duration is setting for a time. What is none is one of the problems.
func (s server) duration(flag string) (time.Duration, error) {
	d, err := time.ParseDuration(s.setting(flag))
	if err != nil {
		err = fmt.Errorf("container %s: --%s: %w", s.Name, flag, err)
	}
	return d, err
}

// flagOf finds "--name=value" and "--name value"; of several the last one, as the programs do.
func flagOf(args []string, name string) (value string, found bool) {
	for i, a := range args {
		if v, ok := strings.CutPrefix(a, "--"+name+"="); ok {
			value, found = v, true
		} else if a == "--"+name && i+1 < len(args) {
			value, found = args[i+1], true
		}
	}
	return value, found
}

// user is the number that the container runs as, or -1 if the image decides.
func user(spec corev1.PodSpec, c corev1.Container) int64 {
	if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
		return *c.SecurityContext.RunAsUser
	}
	if spec.SecurityContext != nil && spec.SecurityContext.RunAsUser != nil {
		return *spec.SecurityContext.RunAsUser
	}
	return -1
}

// nonRoot tells whether the kubelet refuses to run the container as root.
func nonRoot(spec corev1.PodSpec, c corev1.Container) bool {
	if c.SecurityContext != nil && c.SecurityContext.RunAsNonRoot != nil {
		return *c.SecurityContext.RunAsNonRoot
	}
	return spec.SecurityContext != nil && spec.SecurityContext.RunAsNonRoot != nil && *spec.SecurityContext.RunAsNonRoot
}

// place is where a path in a container really is: the volume and the path in it.
func place(spec corev1.PodSpec, c corev1.Container, path string) (mount corev1.VolumeMount, volume corev1.Volume, rest string, ok bool) {
	for _, m := range c.VolumeMounts {
		r, in := strings.CutPrefix(path, strings.TrimSuffix(m.MountPath, "/"))
		if !in || r != "" && r[0] != '/' || ok && len(m.MountPath) < len(mount.MountPath) {
			continue
		}
		for _, v := range spec.Volumes {
			if v.Name == m.Name {
				mount, volume, rest, ok = m, v, strings.TrimPrefix(cmp.Or(r, "/"), "/"), true
			}
		}
	}
	return mount, volume, rest, ok
}
