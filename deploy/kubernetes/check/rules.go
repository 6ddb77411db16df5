package main

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Names of the rules, in the order of the table.
const (
	ruleObject    = "object"
	ruleServer    = "server"
	rulePorts     = "ports"
	ruleNetwork   = "network"
	ruleSurge     = "surge"
	ruleRestart   = "restart"
	ruleGrace     = "grace"
	ruleTakeover  = "takeover"
	ruleProbes    = "probes"
	ruleSocket    = "socket"
	ruleSelf      = "self-socket"
	ruleDirectory = "directory"
	ruleSecurity  = "security"
	ruleService   = "service"
)

// rule finds what is wrong with a workload, and says for each thing what to do.
type rule struct {
	name  string
	check func(workload) []string
}

var rules = []rule{
	{ruleObject, checkObject},
	{ruleServer, checkServer},
	{rulePorts, checkPorts},
	{ruleNetwork, checkNetwork},
	{ruleSurge, checkSurge},
	{ruleRestart, checkRestart},
	{ruleGrace, checkGrace},
	{ruleTakeover, checkTakeover},
	{ruleProbes, checkProbes},
	{ruleSocket, checkSocket},
	{ruleSelf, checkSelf},
	{ruleDirectory, checkDirectory},
	{ruleSecurity, checkSecurity},
}

// checkObject is what the API server refuses and the types allow, as far as it is easily got wrong.
func checkObject(w workload) (bad []string) {
	if w.set != nil {
		selector, err := metav1.LabelSelectorAsSelector(w.set.Spec.Selector)
		if err != nil {
			bad = append(bad, err.Error())
		} else if selector.Empty() || !selector.Matches(labels.Set(w.meta.Labels)) {
			bad = append(bad, "the selector does not match the template's labels")
		}
	}
	for _, v := range w.spec.Volumes {
		if h := v.HostPath; h != nil && (!path.IsAbs(h.Path) || slices.Contains(strings.Split(h.Path, "/"), "..")) {
			bad = append(bad, fmt.Sprintf("volume %s: the path of a hostPath must be absolute and without \"..\"", v.Name))
		}
	}
	names := map[string]bool{}
	for _, c := range slices.Concat(w.spec.InitContainers, w.spec.Containers) {
		if names[c.Name] || c.Name == "" || c.Image == "" {
			bad = append(bad, fmt.Sprintf("container %q needs an image and a name of its own", c.Name))
		}
		names[c.Name] = true
		for _, m := range c.VolumeMounts {
			if !slices.ContainsFunc(w.spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
				bad = append(bad, fmt.Sprintf("container %s mounts %q, which is no volume of the pod", c.Name, m.Name))
			}
		}
		for _, p := range []*corev1.Probe{c.StartupProbe, c.LivenessProbe} {
			if p != nil && p.SuccessThreshold > 1 {
				bad = append(bad, fmt.Sprintf("container %s: successThreshold of startup and liveness probes must be 1", c.Name))
			}
		}
		if p := c.ReadinessProbe; p != nil && p.TerminationGracePeriodSeconds != nil {
			bad = append(bad, fmt.Sprintf("container %s: a readiness probe has no terminationGracePeriodSeconds", c.Name))
		}
	}
	return bad
}

func checkServer(w workload) []string {
	if len(w.servers()) == 0 {
		return []string{"no container has a control socket: give it --socket, or HANDOFF_SOCKET, here and not in the image only"}
	}
	return nil
}

// checkPorts: a port that is declared in the node's network counts as the node's own.
func checkPorts(w workload) (bad []string) {
	for _, c := range slices.Concat(w.spec.InitContainers, w.spec.Containers) {
		for _, p := range c.Ports {
			if w.spec.HostNetwork || w.set != nil && p.HostPort != 0 {
				bad = append(bad, fmt.Sprintf("container %s declares port %d: the scheduler has no room for a second pod with it; remove it", c.Name, p.ContainerPort))
			}
		}
	}
	return bad
}

func checkNetwork(w workload) []string {
	if w.set != nil && !w.spec.HostNetwork {
		return []string{"two pods share a network only with hostNetwork: true"}
	}
	return nil
}

func checkSurge(w workload) (bad []string) {
	if w.set == nil {
		return nil
	}
	s := w.set.Spec.UpdateStrategy
	if s.Type != "RollingUpdate" || s.RollingUpdate == nil {
		return []string{"updateStrategy must be RollingUpdate with maxSurge: 1 and maxUnavailable: 0, which are not the defaults"}
	}
	if zero(s.RollingUpdate.MaxSurge) {
		bad = append(bad, "maxSurge must not be 0: the new pod has to be started beside the old one")
	}
	if m := s.RollingUpdate.MaxUnavailable; m == nil || !zero(m) {
		bad = append(bad, "maxUnavailable must be 0: otherwise the old pod goes first")
	}
	if w.set.Spec.MinReadySeconds < 1 {
		bad = append(bad, "minReadySeconds must be at least 1: otherwise a version that dies at once still gets its turn")
	}
	return bad
}

func zero(v *intstr.IntOrString) bool {
	return v == nil || v.Type == intstr.Int && v.IntVal == 0 || v.Type == intstr.String && (v.StrVal == "0" || v.StrVal == "0%")
}

func checkRestart(w workload) []string {
	if p := w.spec.RestartPolicy; p != "" && p != corev1.RestartPolicyAlways {
		return []string{"restartPolicy must be Always: who has handed over comes back as a standby"}
	}
	return nil
}

// kubeletGrace is what a pod has that says nothing.
const kubeletGrace = 30

// hooks bounds what a program has to do around its drain: BeforeStop and AfterDrain with 10 s each, and the second
// between the drain deadline and the closing of what is left.
const hooks = 21 * time.Second

// checkGrace adds up the longest way to a clean end: wait for a successor that is starting, hand over to it, or else
// the delay of a plain stop, and drain.
func checkGrace(w workload) (bad []string) {
	grace := time.Duration(kubeletGrace) * time.Second
	if g := w.spec.TerminationGracePeriodSeconds; g != nil {
		grace = time.Duration(*g) * time.Second
	}
	for _, s := range w.servers() {
		if s.Lifecycle != nil && s.Lifecycle.PreStop != nil {
			bad = append(bad, fmt.Sprintf("container %s: SIGTERM comes after preStop, in what is left of the time: use --stop-delay, which a handover does without", s.Name))
		}
		sum := hooks
		for flag, times := range map[string]time.Duration{
			"ready-timeout": 1, "step-timeout": 2, "stop-delay": 1, "probation": 1, "drain-timeout": 1,
		} {
			d, err := s.duration(flag)
			if err != nil {
				bad = append(bad, err.Error())
			}
			sum += times * d
		}
		if grace <= sum {
			bad = append(bad, fmt.Sprintf("terminationGracePeriodSeconds (%v) must be longer than what container %s may take to end, %v", grace, s.Name, sum))
		}
	}
	return bad
}

func checkTakeover(w workload) (bad []string) {
	for _, s := range w.servers() {
		if mode := s.setting("takeover"); mode != "standby" {
			bad = append(bad, fmt.Sprintf("container %s takes over by %q: it must be --takeover=standby, or the restarted old container takes over in turn", s.Name, mode))
		}
	}
	return bad
}

// probeTimeout is the default of handoffctl check.
const probeTimeout = "2s"

// upStates are those of which one or another may be enough for a startup or readiness probe.
var upStates = []string{"standby", "ready", "parked", "releasing", "draining"}

func checkProbes(w workload) (bad []string) {
	for _, s := range w.servers() {
		ready, err := s.duration("ready-timeout")
		if err != nil {
			continue // checkGrace says so
		}
		for _, p := range []struct {
			name   string
			probe  *corev1.Probe
			states []string // each must be among those that it takes for good
		}{
			{"startupProbe", s.StartupProbe, []string{"standby", "ready"}},
			{"readinessProbe", s.ReadinessProbe, []string{"standby", "ready", "parked"}},
			{"livenessProbe", s.LivenessProbe, []string{"alive"}},
		} {
			say := func(format string, args ...any) {
				bad = append(bad, fmt.Sprintf("container %s: %s: ", s.Name, p.name)+fmt.Sprintf(format, args...))
			}
			if p.probe == nil || p.probe.Exec == nil {
				say("it must exec handoffctl check: any other probe may be answered by another generation")
				continue
			}
			cmd := p.probe.Exec.Command
			if len(cmd) < 2 || path.Base(cmd[0]) != "handoffctl" || cmd[1] != "check" {
				say("it must be handoffctl check")
				continue
			}
			if self, _ := flagOf(cmd, "self-socket"); self == "" || self != s.setting("self-socket") {
				say("--self-socket must be the container's own, %q", s.setting("self-socket"))
			}
			states, _ := flagOf(cmd, "state")
			for _, want := range p.states {
				if !slices.Contains(strings.Split(states, ","), want) {
					say("--state must have %q", want)
				}
			}
			if p.name == "livenessProbe" {
				if states != "alive" {
					say("--state must be alive only: a state is no reason to be killed")
				}
			} else {
				for state := range strings.SplitSeq(states, ",") {
					if !slices.Contains(upStates, state) {
						say("--state must not have %q: who starts is not ready, and an update would go on too early", state)
					}
				}
			}
			text, ok := flagOf(cmd, "timeout")
			if !ok {
				text = probeTimeout
			}
			if asks, err := time.ParseDuration(text); err != nil {
				say("--timeout: %v", err)
			} else if asks == 0 {
				say("--timeout=0 waits for ever, and the kubelet does not")
			} else if kubelet := time.Duration(max(p.probe.TimeoutSeconds, 1)) * time.Second; kubelet <= asks {
				say("timeoutSeconds (%v) must be longer than handoffctl's --timeout (%v)", kubelet, asks)
			}
		}
		if p := s.StartupProbe; p != nil {
			tries, every := p.FailureThreshold, p.PeriodSeconds
			if tries == 0 {
				tries = 3
			}
			if every == 0 {
				every = 10
			}
			if all := time.Duration(tries*every) * time.Second; all <= ready {
				bad = append(bad, fmt.Sprintf("container %s: startupProbe: failureThreshold times periodSeconds (%v) must be longer than --ready-timeout (%v)", s.Name, all, ready))
			}
		}
	}
	return bad
}

// checkSocket: all generations reach the control socket, by its directory.
func checkSocket(w workload) (bad []string) {
	at := map[string]bool{}
	for _, s := range w.servers() {
		socket := s.setting("socket")
		mount, volume, rest, ok := place(w.spec, s.Container, socket)
		say := func(format string, args ...any) {
			bad = append(bad, fmt.Sprintf("container %s: ", s.Name)+fmt.Sprintf(format, args...))
		}
		switch {
		case !ok:
			say("%s is in no volume, so no other generation can reach it", socket)
			continue
		case rest == "", mount.SubPath != "" || mount.SubPathExpr != "":
			say("mount the directory of %s, neither the file nor a subPath", socket)
		case mount.ReadOnly:
			say("the volume of %s is mounted read-only", socket)
		case len(socket) > 107:
			say("%s is longer than the 107 bytes of a socket's path", socket)
		}
		switch host := volume.HostPath; {
		case w.set == nil && volume.EmptyDir == nil:
			say("the control socket belongs into an emptyDir, which is this pod's only")
		case w.set != nil && host == nil:
			say("the control socket belongs into a hostPath, which both pods see")
		case host != nil && (host.Type == nil || *host.Type != corev1.HostPathDirectoryOrCreate && *host.Type != corev1.HostPathDirectory):
			say("the hostPath's type must be DirectoryOrCreate or Directory")
		}
		at[volume.Name+"/"+rest] = true
	}
	if len(at) > 1 {
		bad = append(bad, "the containers have different control sockets, so they do not hand over to each other")
	}
	if w.set == nil && len(w.servers()) == 1 {
		bad = append(bad, "a pod needs two containers that hand over to each other")
	}
	return bad
}

// checkSelf: each process has a self socket of its own, at a place where no other process has its.
func checkSelf(w workload) (bad []string) {
	at := map[string]bool{}
	for _, s := range w.servers() {
		self := s.setting("self-socket")
		mount, volume, rest, ok := place(w.spec, s.Container, self)
		key := self
		switch {
		case self == "":
			bad = append(bad, fmt.Sprintf("container %s has no --self-socket (or HANDOFF_SELF_SOCKET) for its probes", s.Name))
			continue
		case self == s.setting("socket"):
			bad = append(bad, fmt.Sprintf("container %s: --self-socket is the control socket", s.Name))
		case ok && volume.HostPath != nil:
			bad = append(bad, fmt.Sprintf("container %s: --self-socket is in a hostPath, where the other pod has its own: use /dev/shm", s.Name))
		case ok && mount.ReadOnly:
			bad = append(bad, fmt.Sprintf("container %s: --self-socket is in a volume that is mounted read-only", s.Name))
		case ok && volume.EmptyDir != nil && !strings.Contains(rest, "/"):
			bad = append(bad, fmt.Sprintf("container %s: everybody may write to the emptyDir of --self-socket: use /dev/shm, or a directory in it", s.Name))
		case ok:
			key = volume.Name + ":" + rest
		case !strings.HasPrefix(self, "/dev/shm/"): // which the containers of a pod share
			bad = append(bad, fmt.Sprintf("container %s: --self-socket is where the container can't write: use /dev/shm", s.Name))
		}
		if at[key] {
			bad = append(bad, fmt.Sprintf("container %s: --self-socket is another container's, too", s.Name))
		}
		at[key] = true
	}
	return bad
}

// checkDirectory: volumes come as root's or as everybody's, and servers refuse the second.
func checkDirectory(w workload) (bad []string) {
	for _, s := range w.servers() {
		socket := s.setting("socket")
		_, volume, rest, ok := place(w.spec, s.Container, socket)
		uid := user(w.spec, s.Container)
		switch {
		case !ok, rest == "":
			continue // checkSocket says so
		case volume.EmptyDir != nil && !strings.Contains(rest, "/"):
			bad = append(bad, fmt.Sprintf("container %s: everybody may write to the emptyDir itself: use a directory in it", s.Name))
			continue
		case volume.HostPath != nil && (uid == 0 || volume.HostPath.Type != nil && *volume.HostPath.Type == corev1.HostPathDirectory):
			continue // root's own, or made by somebody else
		}
		if !slices.ContainsFunc(w.spec.InitContainers, func(c corev1.Container) bool { return makes(w.spec, c, volume.Name, rest, uid) }) {
			bad = append(bad, fmt.Sprintf("container %s: an init container must run handoffctl directory for %s and user %d, in a hostPath as root with capability CHOWN", s.Name, socket, uid))
		}
	}
	return bad
}

// makes tells whether an init container makes that directory for that user.
func makes(spec corev1.PodSpec, c corev1.Container, volume, rest string, uid int64) bool {
	if len(c.Command) < 2 || path.Base(c.Command[0]) != "handoffctl" || c.Command[1] != "directory" {
		return false
	}
	socket, _ := flagOf(c.Command, "socket")
	mount, v, r, ok := place(spec, c, socket)
	if !ok || v.Name != volume || r != rest || mount.ReadOnly || mount.SubPath != "" || mount.SubPathExpr != "" {
		return false
	}
	runs := user(spec, c)
	owner := strconv.FormatInt(runs, 10)
	if to, ok := flagOf(c.Command, "owner"); ok {
		owner, _, _ = strings.Cut(to, ":")
	}
	if owner != strconv.FormatInt(uid, 10) {
		return false
	}
	// Everybody may make a directory in an emptyDir; to give away what is root's takes root, and a capability.
	return v.EmptyDir != nil && runs == uid || runs == 0 && chown(c)
}

// chown tells whether the container may give away what is its user's: CAP_CHOWN is one of those that a container has.
func chown(c corev1.Container) bool {
	if c.SecurityContext == nil || c.SecurityContext.Capabilities == nil {
		return true
	}
	caps := c.SecurityContext.Capabilities
	return slices.Contains(caps.Add, "CHOWN") || !slices.Contains(caps.Drop, "ALL") && !slices.Contains(caps.Drop, "CHOWN")
}

// checkSecurity: nothing more than it needs.
func checkSecurity(w workload) (bad []string) {
	pod := w.spec.SecurityContext
	if pod == nil || pod.SeccompProfile == nil || pod.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		bad = append(bad, "the pod's seccompProfile must be RuntimeDefault")
	}
	if pod == nil || pod.RunAsNonRoot == nil || !*pod.RunAsNonRoot {
		bad = append(bad, "the pod must have runAsNonRoot")
	}
	if w.spec.HostPID || w.spec.HostIPC {
		bad = append(bad, "neither hostPID nor hostIPC is needed")
	}
	check := func(c corev1.Container, allowed ...corev1.Capability) {
		say := func(text string) { bad = append(bad, fmt.Sprintf("container %s: %s", c.Name, text)) }
		sc := c.SecurityContext
		if sc == nil {
			sc = &corev1.SecurityContext{}
		}
		if nonRoot(w.spec, c) && user(w.spec, c) == 0 {
			say("it is to run as root, and runAsNonRoot has the kubelet not start it")
		}
		if sc.SeccompProfile != nil && sc.SeccompProfile.Type == corev1.SeccompProfileTypeUnconfined {
			say("its seccompProfile must not be Unconfined")
		}
		if sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation || sc.Privileged != nil && *sc.Privileged {
			say("allowPrivilegeEscalation must be false")
		}
		if sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem {
			say("readOnlyRootFilesystem must be true")
		}
		if sc.Capabilities == nil || !slices.Contains(sc.Capabilities.Drop, "ALL") {
			say("capabilities must drop ALL")
			return
		}
		for _, added := range sc.Capabilities.Add {
			if !slices.Contains(allowed, added) {
				say("capability " + string(added) + " is not needed")
			}
		}
	}
	for _, c := range w.spec.InitContainers {
		check(c, "CHOWN")
	}
	for _, c := range w.spec.Containers {
		check(c, "NET_BIND_SERVICE")
		if sc := c.SecurityContext; sc != nil && sc.RunAsNonRoot != nil && !*sc.RunAsNonRoot {
			bad = append(bad, fmt.Sprintf("container %s must have runAsNonRoot", c.Name))
		}
	}
	return bad
}

// checkService: a Service in front of a pod whose containers are restarted one at a time.
func checkService(w workload, s *corev1.Service) (bad []string) {
	if len(s.Spec.Selector) == 0 || !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(w.meta.Labels)) {
		return nil
	}
	if len(w.servers()) > 1 && !s.Spec.PublishNotReadyAddresses {
		bad = append(bad, "publishNotReadyAddresses must be true: a pod is not ready while one of its containers is restarted")
	}
	for _, p := range s.Spec.Ports {
		if p.TargetPort.Type != intstr.String {
			continue
		}
		named := func(c corev1.Container) bool {
			return slices.ContainsFunc(c.Ports, func(q corev1.ContainerPort) bool { return q.Name == p.TargetPort.StrVal })
		}
		if !slices.ContainsFunc(w.spec.Containers, named) {
			bad = append(bad, fmt.Sprintf("targetPort %q is no port of the pod", p.TargetPort.StrVal))
		}
	}
	return bad
}
