//! Requests on k8s-openapi's structs, which name their own group, version and plural.

use api::status::Status;
use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Client, DeleteOptions, PatchType, Resource};

/// A kind with its own struct. Implemented for all of k8s-openapi's that have metadata.
pub trait Typed:
    k8s_openapi::Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Send + Sync
{
}

impl<K> Typed for K where
    K: k8s_openapi::Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Send + Sync
{
}

/// Namespaces are empty for cluster-scoped kinds. Objects that are written name themselves in their metadata.
impl Client {
    pub async fn get<K: Typed>(&self, namespace: &str, name: &str) -> Result<K, Status> {
        decode(&*self.get_object(&Resource::of::<K>(), namespace, name).await?)
    }

    /// All objects of a kind; `namespace` empty for all namespaces.
    pub async fn list<K: Typed>(&self, namespace: &str, label_selector: &str) -> Result<Vec<K>, Status> {
        let mut scope = Resource::of::<K>().everywhere();
        scope.namespace = (!namespace.is_empty()).then(|| namespace.to_owned());
        label_selector.clone_into(&mut scope.label_selector);
        self.list_objects(scope).await?.objects.iter().map(|object| decode(object)).collect()
    }

    pub async fn create<K: Typed>(&self, object: &K) -> Result<K, Status> {
        let namespace = object.metadata().namespace.clone().unwrap_or_default();
        decode(&*self.create_object(&Resource::of::<K>(), &namespace, encode(object)?).await?)
    }

    pub async fn update<K: Typed>(&self, object: &K) -> Result<K, Status> {
        decode(&*self.update_object(&Resource::of::<K>(), encode(object)?).await?)
    }

    pub async fn update_status<K: Typed>(&self, object: &K) -> Result<K, Status> {
        decode(&*self.update_subresource(&Resource::of::<K>(), "status", encode(object)?).await?)
    }

    pub async fn patch<K: Typed>(
        &self,
        namespace: &str,
        name: &str,
        kind: PatchType,
        patch: Value,
    ) -> Result<K, Status> {
        decode(&*self.patch_object(&Resource::of::<K>(), namespace, name, None, kind, patch).await?)
    }

    pub async fn patch_status<K: Typed>(
        &self,
        namespace: &str,
        name: &str,
        kind: PatchType,
        patch: Value,
    ) -> Result<K, Status> {
        decode(&*self.patch_object(&Resource::of::<K>(), namespace, name, Some("status"), kind, patch).await?)
    }

    pub async fn delete<K: Typed>(&self, namespace: &str, name: &str, options: DeleteOptions) -> Result<(), Status> {
        self.delete_object(&Resource::of::<K>(), namespace, name, options).await.map(drop)
    }
}

fn encode<K: Serialize>(object: &K) -> Result<Value, Status> {
    serde_json::to_value(object).map_err(Status::internal)
}

fn decode<K: DeserializeOwned>(object: &api::object::Object) -> Result<K, Status> {
    object.decode().map_err(Status::internal)
}
