//! What a user looks at with kubectl.

use crate::apply::{deployment, empty_deployment};
use crate::cluster::{BUSYBOX, shared, with_each_kubectl};

#[test]
fn gets_in_every_form() {
    with_each_kubectl("get", |user| {
        user.shows(&["get", "deploy"], &[""]);
        let nothing = user.kubectl().run(&["get", "pods"], "");
        assert_eq!(nothing.stderr.trim_end(), format!("No resources found in {} namespace.", user.namespace()));
        user.apply(&empty_deployment("web"));
        user.shows(&["get", "deploy"], &["NAME   READY   UP-TO-DATE   AVAILABLE   AGE", "web    0/0"]);
        user.shows(&["get", "deploy", "-o", "wide"], &["CONTAINERS   IMAGES", "SELECTOR", BUSYBOX, "app=web"]);
        user.shows(&["get", "deploy", "-A"], &["NAMESPACE", user.namespace()]);
        user.shows(&["get", "deploy", "--show-labels"], &["LABELS", "app=web"]);
        user.shows(&["get", "deploy", "-L", "app"], &["APP", "web"]);
        user.shows(
            &["get", "deploy", "web", "-o", "yaml"],
            &["kind: Deployment\n", "  progressDeadlineSeconds: 600\n"],
        );
        user.shows(
            &["get", "deploy", "web", "-o", "json"],
            &["\"kind\": \"Deployment\"", "\"revisionHistoryLimit\": 10"],
        );
        user.shows(&["get", "deploy", "-o", "json"], &["\"kind\": \"List\""]);
        user.check(&["get", "deploy", "-o", "name"], "deployment.apps/web");
        user.check(&["get", "deploy", "web", "-o", "jsonpath={.spec.strategy.type}"], "RollingUpdate");
        user.check(&["get", "deploy", "-o", "jsonpath-as-json={.items[*].metadata.name}"], "[\n    \"web\"\n]");
        user.check(
            &["get", "deploy", "-o", "custom-columns=NAME:.metadata.name,WANTED:.spec.replicas"],
            "NAME   WANTED\nweb    0",
        );
        user.check(&["get", "deploy", "-o", "go-template={{range .items}}{{.metadata.name}}{{end}}"], "web");
        if user.minor() == "1.36" {
            user.shows(&["get", "deploy", "web", "-o", "kyaml"], &["kind: \"Deployment\","]);
        }
        user.check(&["get", "deploy", "--no-headers", "-o", "custom-columns=:metadata.name", "-l", "app=web"], "web");
        user.check(&["get", "deploy", "-l", "app notin (web)", "-o", "name"], "");
        user.check(&["get", "deploy", "--field-selector=metadata.name=web", "-o", "name"], "deployment.apps/web");
        user.fails(
            &["get", "deploy", "--field-selector=spec.replicas=0"],
            "\"spec.replicas\" is not a known field selector: only",
        );
        user.shows(&["get", "all"], &["deployment.apps/web"]);
        user.shows(&["get", "deploy", "--sort-by=.metadata.name", "--chunk-size=1"], &["web"]);
        user.fails(&["get", "deploy", "other"], "Error from server (NotFound): deployments.apps \"other\" not found");
        user.fails(&["get", "jobs"], "error: the server doesn't have a resource type \"jobs\"");
    });
}

#[test]
fn watches_changes() {
    with_each_kubectl("watch", |user| {
        let mut following = user.kubectl().follow(&["get", "deploy", "-w", "--output-watch-events"]).unwrap();
        user.apply(&empty_deployment("web"));
        following.wait_for("ADDED").unwrap();
        user.ok(&["scale", "deploy", "web", "--replicas=1"]);
        following.wait_for("1/1").unwrap();
        user.ok(&["delete", "deploy", "web"]);
        following.wait_for("DELETED").unwrap();
        let mut one = user.kubectl().follow(&["get", "configmap", "kube-root-ca.crt", "-w", "-o", "name"]).unwrap();
        one.wait_for("configmap/kube-root-ca.crt").unwrap();
    });
}

const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  ingressClassName: nginx
  tls: [{hosts: [rack.example], secretName: rack-tls}]
  rules:
  - host: rack.example
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}]}
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {password: hunter2}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: pages}
data: {index.html: <h1>Hello</h1>}
";

#[test]
fn describes_what_there_is() {
    with_each_kubectl("describe", |user| {
        user.apply(&deployment("web"));
        user.apply(OBJECTS);
        user.ok(&["rollout", "status", "deploy/web", "--timeout=60s"]);
        let expected = [
            "StrategyType:           RollingUpdate",
            "2 desired | 2 updated | 2 total | 2 available | 0 unavailable",
            "NewReplicaSet:   web-",
            "ScalingReplicaSet",
        ];
        user.shows(&["describe", "deploy", "web"], &expected);
        let image = format!("Image:         {BUSYBOX}");
        let expected = [
            "Node:             cupboard/192.168.77.2",
            "State:          Running",
            "Ready:          True",
            &image,
            "QoS Class:                   BestEffort",
            "Pulled",
            "Started",
        ];
        let pods = user.ok(&["get", "pods", "-l", "app=web", "-o", "name"]);
        user.shows(&["describe", pods.lines().next().unwrap()], &expected);
        user.shows(&["describe", "rs"], &["Controlled By:  Deployment/web", "SuccessfulCreate"]);
        user.shows(
            &["describe", "service", "web"],
            &[
                "Type:                     NodePort",
                "NodePort:                 http  3",
                "IP Families:              IPv4",
                "Endpoints:                10.244.",
            ],
        );
        user.shows(
            &["describe", "ingress", "web"],
            &["Ingress Class:    nginx", "rack-tls terminates rack.example", "web:http (10.244."],
        );
        user.shows(&["describe", "secret", "key"], &["password:  7 bytes"]);
        user.shows(&["describe", "configmap", "pages"], &["<h1>Hello</h1>"]);
        user.shows(&["describe", "serviceaccount", "default"], &["Image pull secrets:  <none>"]);
        user.shows(&["describe", "endpointslices"], &["AddressType:  IPv4", "TargetRef:  Pod/web-"]);
        user.shows(&["describe", "namespace", user.namespace()], &["Status:       Active"]);
        user.shows(
            &["describe", "node", "cupboard"],
            &["KubeletReady", "Non-terminated Pods:", "  web-", "Kubelet Version:            v1.37.2+coracle"],
        );
        user.shows(&["describe", "clusterrole", "view"], &["pods/log"]);
        user.shows(&["events", "--for", "deployment/web"], &["ScalingReplicaSet", "Scaled up replica set web-"]);
        user.shows(&["get", "events", "--field-selector=reason=ScalingReplicaSet"], &["deployment/web"]);
    });
}

#[test]
fn explains_what_could_be() {
    with_each_kubectl("explain", |user| {
        user.shows(&["explain", "deployment.spec.replicas"], &["GROUP:      apps", "FIELD: replicas <integer>"]);
        user.shows(
            &["explain", "pod", "--recursive"],
            &["terminationGracePeriodSeconds\t<integer>", "readOnlyRootFilesystem\t<boolean>"],
        );
        user.shows(&["explain", "ingress.spec.rules.http.paths"], &["pathType\t<string> -required-"]);
        user.fails(&["explain", "pod.spec.nonsense"], "error: field \"nonsense\" does not exist");
        user.shows(&["api-resources"], &["deployments                 deploy       apps/v1", "leases"]);
        user.shows(
            &["api-resources", "--namespaced=false", "-o", "name"],
            &["nodes", "priorityclasses.scheduling.k8s.io"],
        );
        user.shows(
            &["api-resources", "--api-group=apps", "-o", "wide"],
            &["create,delete,deletecollection,get,list,patch,update,watch"],
        );
        user.shows(&["api-versions"], &["apps/v1", "networking.k8s.io/v1", "rbac.authorization.k8s.io/v1"]);
        user.shows(&["version"], &["Server Version: v1.37.2+coracle"]);
        user.shows(&["cluster-info"], &["is running at", "https://192.168.77.2:6443"]);
        user.shows(&["get", "--raw", "/readyz?verbose"], &["readyz check passed"]);
        user.fails(&["top", "pods"], "error: Metrics API not available");
    });
}

#[test]
fn the_cluster_begins_with_what_upstream_has() {
    with_each_kubectl("begin", |user| {
        user.shows(&["get", "nodes"], &["STATUS   ROLES    AGE", "cupboard   Ready"]);
        user.shows(&["get", "namespaces"], &["default", "kube-node-lease", "kube-public", "kube-system"]);
        user.shows(&["get", "services", "-A"], &["kubernetes", "kube-dns", "10.96.0.10", "53/UDP,53/TCP"]);
        user.shows(&["get", "priorityclasses"], &["system-cluster-critical", "2000000000"]);
        user.shows(&["get", "clusterroles"], &["cluster-admin", "view"]);
        user.shows(&["get", "lease", "-n", "kube-node-lease"], &["cupboard"]);
        user.check(&["get", "configmap", "kube-root-ca.crt", "-o", "jsonpath={.metadata.name}"], "kube-root-ca.crt");
        assert!(!shared().log().contains("panicked"), "{}", shared().log());
    });
}
