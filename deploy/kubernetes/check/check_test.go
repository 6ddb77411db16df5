package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	daemonSet = "../daemonset.yaml"
	pod       = "../pod-with-holder.yaml"
)

// read is a manifest of deploy/kubernetes.
func read(t *testing.T, file string) manifest {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	m, err := decode(text)
	require.NoError(t, err)
	return m
}

// The manifests, all of them, are what the API server takes, and have nothing against the rules.
func TestManifests(t *testing.T) {
	files, err := filepath.Glob("../*.yaml")
	require.NoError(t, err)
	require.ElementsMatch(t, []string{daemonSet, pod}, files)
	for _, file := range files {
		require.Empty(t, read(t, file).problems(), file)
	}
	var stdout, stderr bytes.Buffer
	require.Zero(t, run(files, &stdout, &stderr), "%s%s", stdout.String(), stderr.String())
	require.Empty(t, stdout.String()+stderr.String())
}

// What the API server would refuse is refused, with where it is.
func TestStrict(t *testing.T) {
	text, err := os.ReadFile(daemonSet)
	require.NoError(t, err)
	for _, tc := range []struct{ name, old, new, want string }{
		{"unknown field", "minReadySeconds: 5", "minReadySecond: 5", `unknown field "spec.minReadySecond"`},
		{"unknown field deep inside", "readOnlyRootFilesystem: true", "readOnlyRootFS: true", `unknown field "spec.template.spec.initContainers[0].securityContext.readOnlyRootFS"`},
		{"field twice", "minReadySeconds: 5", "minReadySeconds: 5\n  minReadySeconds: 6", `key "minReadySeconds" already set`},
		{"wrong type", "minReadySeconds: 5", "minReadySeconds: five", "cannot unmarshal"},
		{"wrong case", "maxSurge: 1", "MaxSurge: 1", `unknown field "spec.updateStrategy.rollingUpdate.MaxSurge"`},
		{"wrong group", "apiVersion: apps/v1", "apiVersion: apps/v1beta1", `kind "DaemonSet" of "apps/v1beta1" is not checked here`},
		{"other kind", "kind: DaemonSet", "kind: Deployment", `kind "Deployment" of "apps/v1" is not checked here`},
		{"no YAML", "kind: DaemonSet", "kind: [", "yaml"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			require.Contains(t, string(text), tc.old)
			file := filepath.Join(t.TempDir(), "bad.yaml")
			require.NoError(t, os.WriteFile(file, []byte(strings.Replace(string(text), tc.old, tc.new, 1)), 0o600))
			var stdout, stderr bytes.Buffer
			require.Equal(t, 1, run([]string{file}, &stdout, &stderr))
			require.Contains(t, stdout.String(), tc.want)
		})
	}
	_, err = decode([]byte("apiVersion: v1\nkind: Service\nmetadata: {name: web}\n"))
	require.ErrorContains(t, err, "neither a DaemonSet nor a Pod")
}

func TestUsage(t *testing.T) {
	var stdout, stderr bytes.Buffer
	require.Equal(t, 2, run(nil, &stdout, &stderr))
	require.Contains(t, stderr.String(), "usage: check FILE...")
	require.Equal(t, 2, run([]string{"missing.yaml"}, &stdout, &stderr))
	require.Contains(t, stderr.String(), "missing.yaml")
}

// Each rule finds what it is for: a manifest with one thing wrong has that problem and no other.
func TestRules(t *testing.T) {
	found := map[string]bool{}
	for _, tc := range []struct {
		name   string
		file   string
		mutate func(m manifest)
		rule   string
		want   string
	}{
		{name: "selector of another set", rule: ruleObject, want: "selector", mutate: set(func(s spec) { s.set.Spec.Selector.MatchLabels = map[string]string{"a": "b"} })},
		{name: "no selector", rule: ruleObject, want: "selector", mutate: set(func(s spec) { s.set.Spec.Selector = nil })},
		{name: "mount of no volume", rule: ruleObject, want: `"cache", which is no volume`, mutate: set(func(s spec) {
			s.server.VolumeMounts = append(s.server.VolumeMounts, corev1.VolumeMount{Name: "cache", MountPath: "/cache"})
		})},
		{name: "two of one name", rule: ruleObject, want: "name of its own", file: pod, mutate: in(func(p *corev1.PodSpec) { p.Containers[1].Name = "blue" })},
		{name: "success more than once", rule: ruleObject, want: "successThreshold", mutate: set(func(s spec) { s.server.LivenessProbe.SuccessThreshold = 2 })},
		{name: "grace of a readiness probe", rule: ruleObject, want: "readiness probe has no", mutate: set(func(s spec) { s.server.ReadinessProbe.TerminationGracePeriodSeconds = new(int64(1)) })},
		{name: "a relative hostPath", rule: ruleObject, want: "must be absolute", mutate: set(func(s spec) { s.pod.Volumes[0].HostPath.Path = "run/web" })},
		{name: "a hostPath that climbs", rule: ruleObject, want: "must be absolute", mutate: set(func(s spec) { s.pod.Volumes[0].HostPath.Path = "/run/../etc" })},

		{name: "socket named in the image only", rule: ruleServer, want: "no container has a control socket", mutate: set(func(s spec) { drop(s.server, "--socket=") })},

		{name: "port in the node's network", rule: rulePorts, want: "no room for a second pod", mutate: set(func(s spec) { s.server.Ports = []corev1.ContainerPort{{ContainerPort: 8080}} })},
		{name: "port of an init container", rule: rulePorts, want: "no room for a second pod", mutate: set(func(s spec) { s.pod.InitContainers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8080}} })},

		{name: "pod network", rule: ruleNetwork, want: "hostNetwork", mutate: set(func(s spec) { s.pod.HostNetwork = false })},

		{name: "no surge", rule: ruleSurge, want: "maxSurge", mutate: set(func(s spec) { s.set.Spec.UpdateStrategy.RollingUpdate.MaxSurge = nil })},
		{name: "surge of 0%", rule: ruleSurge, want: "maxSurge", mutate: set(func(s spec) { s.set.Spec.UpdateStrategy.RollingUpdate.MaxSurge = new(intstr.FromString("0%")) })},
		{name: "one unavailable", rule: ruleSurge, want: "maxUnavailable", mutate: set(func(s spec) { s.set.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = new(intstr.FromInt32(1)) })},
		{name: "unavailable by default", rule: ruleSurge, want: "maxUnavailable", mutate: set(func(s spec) { s.set.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = nil })},
		{name: "on delete", rule: ruleSurge, want: "RollingUpdate", mutate: set(func(s spec) { s.set.Spec.UpdateStrategy.Type = "OnDelete" })},
		{name: "ready at once", rule: ruleSurge, want: "minReadySeconds", mutate: set(func(s spec) { s.set.Spec.MinReadySeconds = 0 })},

		{name: "never restarted", rule: ruleRestart, want: "Always", file: pod, mutate: in(func(p *corev1.PodSpec) { p.RestartPolicy = "Never" })},

		{name: "short grace", rule: ruleGrace, want: "longer than what container server may take to end, 2m16s", mutate: set(func(s spec) { s.pod.TerminationGracePeriodSeconds = new(int64(136)) })},
		{name: "grace by default", rule: ruleGrace, want: "(30s)", mutate: set(func(s spec) { s.pod.TerminationGracePeriodSeconds = nil })},
		{name: "long drain", rule: ruleGrace, want: "longer than", mutate: set(func(s spec) { replace(s.server, "--drain-timeout=60s", "--drain-timeout=5m") })},
		{name: "long drain by the environment", rule: ruleGrace, want: "longer than", mutate: set(func(s spec) {
			drop(s.server, "--drain-timeout=")
			s.server.Env = append(s.server.Env, corev1.EnvVar{Name: "HANDOFF_DRAIN_TIMEOUT", Value: "5m"})
		})},
		{name: "long probation of the second", rule: ruleGrace, want: "container green", file: pod, mutate: in(func(p *corev1.PodSpec) { replace(&p.Containers[1], "--probation=5s", "--probation=5m") })},
		{name: "no duration", rule: ruleGrace, want: "--probation", mutate: set(func(s spec) { replace(s.server, "--probation=5s", "--probation=5") })},
		{name: "long drain the second time", rule: ruleGrace, want: "longer than", mutate: set(func(s spec) { s.server.Args = append(s.server.Args, "--drain-timeout=5m") })},
		{name: "a pause before SIGTERM", rule: ruleGrace, want: "preStop", mutate: set(func(s spec) {
			s.server.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 200}}}
		})},

		{name: "auto", rule: ruleTakeover, want: `takes over by "auto"`, mutate: set(func(s spec) { drop(s.server, "--takeover=") })},
		{name: "spare", rule: ruleTakeover, want: `takes over by "spare"`, mutate: set(func(s spec) { replace(s.server, "--takeover=standby", "--takeover=spare") })},
		{name: "auto the second time", rule: ruleTakeover, want: `takes over by "auto"`, mutate: set(func(s spec) { s.server.Args = append(s.server.Args, "--takeover", "auto") })},
		{name: "auto the second time in the environment", rule: ruleTakeover, want: `takes over by "auto"`, mutate: set(func(s spec) {
			drop(s.server, "--takeover=")
			for _, mode := range []string{"standby", "auto"} {
				s.server.Env = append(s.server.Env, corev1.EnvVar{Name: "HANDOFF_TAKEOVER", Value: mode})
			}
		})},

		{name: "probe by HTTP", rule: ruleProbes, want: "readinessProbe: it must exec", mutate: set(func(s spec) {
			s.server.ReadinessProbe.ProbeHandler = corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(8080)}}
		})},
		{name: "no liveness probe", rule: ruleProbes, want: "livenessProbe: it must exec", mutate: set(func(s spec) { s.server.LivenessProbe = nil })},
		{name: "another program", rule: ruleProbes, want: "must be handoffctl check", mutate: set(func(s spec) { s.server.StartupProbe.Exec.Command = []string{"/bin/true"} })},
		{name: "probe of the control socket", rule: ruleProbes, want: "--self-socket must be the container's own", mutate: set(func(s spec) {
			s.server.ReadinessProbe.Exec.Command[2] = "--socket=/run/handoff/control.sock"
		})},
		{name: "probe of the other container", rule: ruleProbes, want: "--self-socket must be the container's own", file: pod, mutate: in(func(p *corev1.PodSpec) {
			p.Containers[0].ReadinessProbe.Exec.Command[2] = "--self-socket=/run/handoff/web/green.sock"
		})},
		{name: "a standby is not ready", rule: ruleProbes, want: `--state must have "standby"`, mutate: set(func(s spec) { s.server.ReadinessProbe.Exec.Command[3] = "--state=ready,parked" })},
		{name: "in probation not ready", rule: ruleProbes, want: `--state must have "parked"`, mutate: set(func(s spec) { s.server.ReadinessProbe.Exec.Command[3] = "--state=standby,ready" })},
		{name: "draining is death", rule: ruleProbes, want: "--state must be alive only", mutate: set(func(s spec) { s.server.LivenessProbe.Exec.Command[3] = "--state=alive,ready" })},
		{name: "starting is ready", rule: ruleProbes, want: `readinessProbe: --state must not have "starting"`, mutate: set(func(s spec) { s.server.ReadinessProbe.Exec.Command[3] = "--state=standby,ready,parked,starting" })},
		{name: "alive is up", rule: ruleProbes, want: `startupProbe: --state must not have "alive"`, mutate: set(func(s spec) { s.server.StartupProbe.Exec.Command[3] = "--state=standby,ready,alive" })},
		{name: "no such state", rule: ruleProbes, want: `--state must not have "realeasing"`, mutate: set(func(s spec) { s.server.ReadinessProbe.Exec.Command[3] = "--state=standby,ready,parked,realeasing" })},
		{name: "it asks for ever", rule: ruleProbes, want: "waits for ever", mutate: set(func(s spec) { s.server.LivenessProbe.Exec.Command[4] = "--timeout=0" })},
		{name: "the kubelet is quicker", rule: ruleProbes, want: "timeoutSeconds (2s) must be longer", mutate: set(func(s spec) { s.server.ReadinessProbe.TimeoutSeconds = 2 })},
		{name: "the kubelet's default is quicker", rule: ruleProbes, want: "timeoutSeconds (1s) must be longer than handoffctl's --timeout (2s)", mutate: set(func(s spec) {
			p := s.server.ReadinessProbe
			p.TimeoutSeconds, p.Exec.Command = 0, p.Exec.Command[:4]
		})},
		{name: "little time to start", rule: ruleProbes, want: "(30s) must be longer than --ready-timeout (30s)", mutate: set(func(s spec) { s.server.StartupProbe.FailureThreshold = 30 })},
		{name: "time to start by default", rule: ruleProbes, want: "(30s) must be longer than --ready-timeout (30s)", mutate: set(func(s spec) {
			s.server.StartupProbe.FailureThreshold, s.server.StartupProbe.PeriodSeconds = 0, 0
		})},

		{name: "the file mounted", rule: ruleSocket, want: "mount the directory", mutate: set(func(s spec) { s.server.VolumeMounts[0].MountPath = "/run/handoff/control.sock" })},
		{name: "a subPath mounted", rule: ruleSocket, want: "neither the file nor a subPath", mutate: set(func(s spec) { s.server.VolumeMounts[0].SubPath = "web" })},
		{name: "mounted read-only", rule: ruleSocket, want: "read-only", mutate: set(func(s spec) { s.server.VolumeMounts[0].ReadOnly = true })},
		{name: "mounted elsewhere", rule: ruleSocket, want: "in no volume", mutate: set(func(s spec) { s.server.VolumeMounts[0].MountPath = "/run/hand" })},
		{name: "another path by the flag", rule: ruleSocket, want: "in no volume", mutate: set(func(s spec) { replace(s.server, "--socket=/run/handoff/control.sock", "--socket=/run/control.sock") })},
		{name: "a file on the host", rule: ruleSocket, want: "DirectoryOrCreate", mutate: set(func(s spec) { s.pod.Volumes[0].HostPath.Type = new(corev1.HostPathFileOrCreate) })},
		{name: "a pod's own volume", rule: ruleSocket, want: "hostPath, which both pods see", mutate: set(func(s spec) {
			s.pod.Volumes[0].VolumeSource = corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "web"}}
		})},
		{name: "long path", rule: ruleSocket, want: "107", mutate: set(func(s spec) {
			long := "--socket=/run/handoff/" + strings.Repeat("s", 107)
			replace(s.server, "--socket=/run/handoff/control.sock", long)
			s.pod.InitContainers[0].Command[2] = long
		})},
		{name: "two services in a pod", rule: ruleSocket, want: "different control sockets", file: pod, mutate: in(func(p *corev1.PodSpec) {
			second := p.InitContainers[0].DeepCopy()
			second.Name, second.Command[2] = "second", "--socket=/run/handoff/green/control.sock"
			p.InitContainers = append(p.InitContainers, *second)
			p.Containers[1].Args = append(p.Containers[1].Args, "--socket=/run/handoff/green/control.sock")
		})},
		{name: "nobody to hand over to", rule: ruleSocket, want: "two containers", file: pod, mutate: in(func(p *corev1.PodSpec) { p.Containers = p.Containers[:1] })},
		{name: "a pod on a hostPath", rule: ruleSocket, want: "emptyDir, which is this pod's only", file: pod, mutate: in(func(p *corev1.PodSpec) {
			p.Volumes[0].VolumeSource = corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/run/handoff", Type: new(corev1.HostPathDirectoryOrCreate)}}
			p.InitContainers[0].Command = append(p.InitContainers[0].Command, "--owner=65532")
			sc := p.InitContainers[0].SecurityContext
			sc.RunAsUser, sc.RunAsNonRoot, sc.Capabilities.Add = new(int64(0)), new(false), []corev1.Capability{"CHOWN"}
			p.Containers[0].Args[1], p.Containers[1].Args[1] = "--self-socket=/dev/shm/b", "--self-socket=/dev/shm/g"
			probes(&p.Containers[0], "--self-socket=/dev/shm/b")
			probes(&p.Containers[1], "--self-socket=/dev/shm/g")
		})},

		{name: "no self socket", rule: ruleSelf, want: "has no --self-socket", mutate: set(func(s spec) {
			drop(s.server, "--self-socket=")
			s.server.StartupProbe, s.server.ReadinessProbe, s.server.LivenessProbe = nil, nil, nil
		})},
		{name: "the self socket is the control socket", rule: ruleSelf, want: "is the control socket", mutate: set(func(s spec) {
			replace(s.server, "--self-socket=/dev/shm/handoff.sock", "--self-socket=/run/handoff/control.sock")
			probes(s.server, "--self-socket=/run/handoff/control.sock")
		})},
		{name: "the self socket where the other pod has its", rule: ruleSelf, want: "is in a hostPath", mutate: set(func(s spec) {
			replace(s.server, "--self-socket=/dev/shm/handoff.sock", "--self-socket=/run/handoff/self.sock")
			probes(s.server, "--self-socket=/run/handoff/self.sock")
		})},
		{name: "the self socket in a read-only root", rule: ruleSelf, want: "can't write", mutate: set(func(s spec) {
			replace(s.server, "--self-socket=/dev/shm/handoff.sock", "--self-socket=/tmp/self.sock")
			probes(s.server, "--self-socket=/tmp/self.sock")
		})},
		{name: "one self socket for two", rule: ruleSelf, want: "another container's, too", file: pod, mutate: in(func(p *corev1.PodSpec) {
			replace(&p.Containers[1], "--self-socket=/run/handoff/web/green.sock", "--self-socket=/run/handoff/web/blue.sock")
			probes(&p.Containers[1], "--self-socket=/run/handoff/web/blue.sock")
		})},
		{name: "one in the pod's memory for two", rule: ruleSelf, want: "another container's, too", file: pod, mutate: in(func(p *corev1.PodSpec) {
			for i := range p.Containers {
				p.Containers[i].Args[1] = "--self-socket=/dev/shm/handoff.sock"
				probes(&p.Containers[i], "--self-socket=/dev/shm/handoff.sock")
			}
		})},
		{name: "the self socket where everybody may write", rule: ruleSelf, want: "everybody may write", mutate: set(func(s spec) {
			emptyDirAt(s, corev1.VolumeMount{MountPath: "/tmp"})
			replace(s.server, "--self-socket=/dev/shm/handoff.sock", "--self-socket=/tmp/self.sock")
			probes(s.server, "--self-socket=/tmp/self.sock")
		})},
		{name: "everybody's directory over the pod's memory", rule: ruleSelf, want: "everybody may write", mutate: set(func(s spec) {
			emptyDirAt(s, corev1.VolumeMount{MountPath: "/dev/shm"})
		})},
		{name: "the self socket in a read-only volume", rule: ruleSelf, want: "mounted read-only", mutate: set(func(s spec) {
			emptyDirAt(s, corev1.VolumeMount{MountPath: "/tmp", ReadOnly: true})
			replace(s.server, "--self-socket=/dev/shm/handoff.sock", "--self-socket=/tmp/a/self.sock")
			probes(s.server, "--self-socket=/tmp/a/self.sock")
		})},

		{name: "root's directory", rule: ruleDirectory, want: "for /run/handoff/control.sock and user 65532", mutate: set(func(s spec) { s.pod.InitContainers = nil })},
		{name: "a third user's directory", rule: ruleDirectory, want: "user 65532", mutate: set(func(s spec) { s.pod.InitContainers[0].Command[3] = "--owner=65533:65532" })},
		{name: "another directory", rule: ruleDirectory, want: "user 65532", mutate: set(func(s spec) { s.pod.InitContainers[0].Command[2] = "--socket=/run/handoff/other/control.sock" })},
		{name: "a directory that is not given away", rule: ruleDirectory, want: "capability CHOWN", mutate: set(func(s spec) { s.pod.InitContainers[0].SecurityContext.Capabilities.Add = nil })},
		{name: "a directory given away by the wrong user", rule: ruleDirectory, want: "as root", mutate: set(func(s spec) { s.pod.InitContainers[0].SecurityContext.RunAsUser = new(int64(65532)) })},
		{name: "a directory that can't be made", rule: ruleDirectory, want: "user 65532", file: pod, mutate: in(func(p *corev1.PodSpec) { p.InitContainers[0].VolumeMounts[0].ReadOnly = true })},
		{name: "another directory by a subPath", rule: ruleDirectory, want: "user 65532", mutate: set(func(s spec) { s.pod.InitContainers[0].VolumeMounts[0].SubPath = "web" })},
		{name: "everybody's directory", rule: ruleDirectory, want: "user 65532", file: pod, mutate: in(func(p *corev1.PodSpec) { p.InitContainers = nil })},
		{name: "the emptyDir itself", rule: ruleDirectory, want: "everybody may write", file: pod, mutate: in(func(p *corev1.PodSpec) {
			for i := range p.Containers {
				p.Containers[i].Args = append(p.Containers[i].Args, "--socket=/run/handoff/control.sock")
			}
		})},

		{name: "root", rule: ruleSecurity, want: "runAsNonRoot", mutate: set(func(s spec) { s.pod.SecurityContext.RunAsNonRoot = nil })},
		{name: "the server as root", rule: ruleSecurity, want: "container server must have runAsNonRoot", mutate: set(func(s spec) { s.server.SecurityContext.RunAsNonRoot = new(false) })},
		{name: "root, which the kubelet refuses", rule: ruleSecurity, want: "container server: it is to run as root", mutate: set(func(s spec) {
			s.server.SecurityContext.RunAsUser, s.pod.InitContainers[0].Command[3] = new(int64(0)), "--owner=0"
		})},
		{name: "root that gives away, refused likewise", rule: ruleSecurity, want: "container directory: it is to run as root", mutate: set(func(s spec) { s.pod.InitContainers[0].SecurityContext.RunAsNonRoot = nil })},
		{name: "no seccomp for one", rule: ruleSecurity, want: "Unconfined", mutate: set(func(s spec) {
			s.server.SecurityContext.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}
		})},
		{name: "no seccomp", rule: ruleSecurity, want: "seccompProfile", mutate: set(func(s spec) { s.pod.SecurityContext.SeccompProfile = nil })},
		{name: "writable root", rule: ruleSecurity, want: "readOnlyRootFilesystem", mutate: set(func(s spec) { s.server.SecurityContext.ReadOnlyRootFilesystem = nil })},
		{name: "capabilities", rule: ruleSecurity, want: "must drop ALL", mutate: set(func(s spec) { s.server.SecurityContext.Capabilities = nil })},
		{name: "a capability", rule: ruleSecurity, want: "SYS_ADMIN is not needed", mutate: set(func(s spec) {
			s.server.SecurityContext.Capabilities.Add = []corev1.Capability{"NET_BIND_SERVICE", "SYS_ADMIN"}
		})},
		{name: "escalation", rule: ruleSecurity, want: "allowPrivilegeEscalation", mutate: set(func(s spec) { s.server.SecurityContext.AllowPrivilegeEscalation = nil })},
		{name: "privileged", rule: ruleSecurity, want: "allowPrivilegeEscalation", mutate: set(func(s spec) { s.server.SecurityContext.Privileged = new(true) })},
		{name: "nothing said", rule: ruleSecurity, want: "container directory: capabilities must drop ALL", mutate: set(func(s spec) {
			s.pod.InitContainers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: new(int64(0)), RunAsNonRoot: new(false)}
		})},
		{name: "the node's processes", rule: ruleSecurity, want: "hostPID", mutate: set(func(s spec) { s.pod.HostPID = true })},

		{name: "ready pods only", rule: ruleService, want: "publishNotReadyAddresses", file: pod, mutate: func(m manifest) { m.services[0].Spec.PublishNotReadyAddresses = false }},
		{name: "port of no container", rule: ruleService, want: `targetPort "http" is no port`, file: pod, mutate: in(func(p *corev1.PodSpec) { p.Containers[0].Ports = nil })},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := daemonSet
			if tc.file != "" {
				file = tc.file
			}
			m := read(t, file)
			tc.mutate(m)
			problems := m.problems()
			require.Contains(t, strings.Join(problems, "\n"), tc.want)
			said := false
			for _, p := range problems {
				if strings.Contains(p, ": "+tc.rule+": ") {
					said = true
				} else if tc.rule != ruleSelf { // whose probes go wrong as well
					t.Errorf("another rule: %s", p)
				}
			}
			require.True(t, said, "rule %s: %v", tc.rule, problems)
			found[tc.rule] = true
		})
	}
	for _, r := range rules {
		require.True(t, found[r.name], "no manifest is bad by the rule %q", r.name)
	}
	require.True(t, found[ruleService])
}

// spec is what the cases change of the DaemonSet.
type spec struct {
	set    *appsv1.DaemonSet
	pod    *corev1.PodSpec
	server *corev1.Container
}

func set(change func(spec)) func(manifest) {
	return func(m manifest) {
		p := &m.sets[0].Spec.Template.Spec
		change(spec{m.sets[0], p, &p.Containers[0]})
	}
}

// in is for the pod.
func in(change func(*corev1.PodSpec)) func(manifest) {
	return func(m manifest) { change(&m.pods[0].Spec) }
}

// drop takes the flag out of the arguments.
func drop(c *corev1.Container, flag string) {
	c.Args = slices.DeleteFunc(c.Args, func(a string) bool { return strings.HasPrefix(a, flag) })
}

func replace(c *corev1.Container, old, text string) {
	c.Args[slices.Index(c.Args, old)] = text
}

// probes has all of a container's probes ask at another place.
func probes(c *corev1.Container, flag string) {
	for _, p := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
		p.Exec.Command[2] = flag
	}
}

// emptyDirAt gives the server another volume.
func emptyDirAt(s spec, m corev1.VolumeMount) {
	m.Name = "more"
	s.pod.Volumes = append(s.pod.Volumes, corev1.Volume{Name: m.Name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	s.server.VolumeMounts = append(s.server.VolumeMounts, m)
}

// README.md explains every rule.
func TestRulesAreExplained(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	for _, r := range rules {
		require.Contains(t, string(text), "| `"+r.name+"` |")
	}
	require.Contains(t, string(text), "| `"+ruleService+"` |")
}

// What the manifests leave to the program is what the rules take for its defaults.
func TestDefaults(t *testing.T) {
	help, err := exec.CommandContext(t.Context(), "go", "-C", "../../..", "run", "./cmd/server", "--help").CombinedOutput()
	require.NoError(t, err, "%s", help)
	for flag, want := range defaults {
		m := regexp.MustCompile(`(?m)^ +--` + flag + ` .*$(\n {10,}.*$)*`).Find(help)
		require.NotNil(t, m, "--%s", flag)
		if d := regexp.MustCompile(`\(default ([^)]*)\)`).FindSubmatch(m); d != nil {
			require.Equal(t, want, string(d[1]), "--%s", flag)
		} else {
			require.Equal(t, "0s", want, "--%s", flag)
		}
	}
}
