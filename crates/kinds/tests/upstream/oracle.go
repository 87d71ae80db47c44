//go:build ignore

// Gives manifests the errors and warnings of upstream's own validation.
//
// Reads lines of JSON {"object", "old"} and writes them back with "errors" and "warnings". Objects to update must have
// their defaults. Build it in a module that requires k8s.io/kubernetes of the release that is compared with.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/apps"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	api "k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/apis/discovery"
	_ "k8s.io/kubernetes/pkg/apis/discovery/install"
	discoveryvalidation "k8s.io/kubernetes/pkg/apis/discovery/validation"
	"k8s.io/kubernetes/pkg/apis/networking"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	netvalidation "k8s.io/kubernetes/pkg/apis/networking/validation"
	"k8s.io/kubernetes/pkg/apis/rbac"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
	rbacvalidation "k8s.io/kubernetes/pkg/apis/rbac/validation"
)

// one line of JSON {"object":..., "old":...?} in, one line of JSON {"errors": [...], "object": ...} out
func main() {
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) == 0 && err != nil {
			return
		}
		var q struct {
			Object json.RawMessage
			Old    json.RawMessage
		}
		if err := json.Unmarshal(line, &q); err != nil {
			panic(err)
		}
		out := map[string]any{}
		obj, v1obj, derr := decode(q.Object)
		if derr != nil {
			out["errors"] = []string{"decode: " + derr.Error()}
		} else {
			var old runtime.Object
			if len(q.Old) > 0 {
				old, _, _ = decode(q.Old)
			}
			errs := []string{}
			for _, e := range validate(obj, old) {
				errs = append(errs, e.Error())
			}
			out["errors"] = errs
			switch o := obj.(type) {
			case *api.Pod:
				out["warnings"] = podutil.GetWarningsForPod(context.Background(), o, nil)
			case *apps.Deployment:
				out["warnings"] = podutil.GetWarningsForPodTemplate(context.Background(), field.NewPath("spec", "template"), &o.Spec.Template, nil)
			}
			out["object"] = v1obj
		}
		b, _ := json.Marshal(out)
		fmt.Println(string(b))
	}
}

func decode(raw []byte) (runtime.Object, runtime.Object, error) {
	v1obj, _, err := legacyscheme.Codecs.UniversalDeserializer().Decode(raw, nil, nil)
	if err != nil {
		return nil, nil, err
	}
	legacyscheme.Scheme.Default(v1obj)
	gvk := v1obj.GetObjectKind().GroupVersionKind()
	obj, err := legacyscheme.Scheme.ConvertToVersion(v1obj, runtime.InternalGroupVersioner)
	v1obj.GetObjectKind().SetGroupVersionKind(gvk)
	return obj, v1obj, err
}

func validate(obj, old runtime.Object) field.ErrorList {
	switch o := obj.(type) {
	case *api.Pod:
		if old != nil {
			p := old.(*api.Pod)
			opts := podutil.GetValidationOptionsFromPodSpecAndMeta(&o.Spec, &p.Spec, &o.ObjectMeta, &p.ObjectMeta)
			opts.ResourceIsPod = true
			o.ResourceVersion, p.ResourceVersion = "1", "1"
			return corevalidation.ValidatePodUpdate(o, p, opts)
		}
		opts := podutil.GetValidationOptionsFromPodSpecAndMeta(&o.Spec, nil, &o.ObjectMeta, nil)
		opts.ResourceIsPod = true
		return corevalidation.ValidatePodCreate(o, opts)
	case *apps.Deployment:
		if old != nil {
			p := old.(*apps.Deployment)
			o.ResourceVersion, p.ResourceVersion = "1", "1"
			return appsvalidation.ValidateDeploymentUpdate(o, p, podutil.GetValidationOptionsFromPodTemplate(&o.Spec.Template, &p.Spec.Template))
		}
		return appsvalidation.ValidateDeployment(o, podutil.GetValidationOptionsFromPodTemplate(&o.Spec.Template, nil))
	case *apps.ReplicaSet:
		return appsvalidation.ValidateReplicaSet(o, podutil.GetValidationOptionsFromPodTemplate(&o.Spec.Template, nil))
	case *api.Service:
		if old != nil {
			p := old.(*api.Service)
			o.ResourceVersion, p.ResourceVersion = "1", "1"
			return corevalidation.ValidateServiceUpdate(o, p)
		}
		return corevalidation.ValidateServiceCreate(o)
	case *api.Secret:
		if old != nil {
			p := old.(*api.Secret)
			o.ResourceVersion, p.ResourceVersion = "1", "1"
			return corevalidation.ValidateSecretUpdate(o, p)
		}
		return corevalidation.ValidateSecret(o)
	case *api.ConfigMap:
		if old != nil {
			p := old.(*api.ConfigMap)
			o.ResourceVersion, p.ResourceVersion = "1", "1"
			return corevalidation.ValidateConfigMapUpdate(o, p)
		}
		return corevalidation.ValidateConfigMap(o)
	case *api.Node:
		return corevalidation.ValidateNode(o)
	case *api.Namespace:
		return corevalidation.ValidateNamespace(o)
	case *api.Endpoints:
		return corevalidation.ValidateEndpointsCreate(o)
	case *networking.Ingress:
		return netvalidation.ValidateIngressCreate(o)
	case *networking.IngressClass:
		return netvalidation.ValidateIngressClass(o)
	case *rbac.Role:
		return rbacvalidation.ValidateRole(o)
	case *rbac.RoleBinding:
		return rbacvalidation.ValidateRoleBinding(o)
	case *rbac.ClusterRoleBinding:
		return rbacvalidation.ValidateClusterRoleBinding(o)
	case *discovery.EndpointSlice:
		return discoveryvalidation.ValidateEndpointSliceCreate(o)
	}
	_ = metav1.Now
	return field.ErrorList{field.InternalError(nil, fmt.Errorf("no oracle for %T", obj))}
}
