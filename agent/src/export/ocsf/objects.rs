//! The objects of OCSF 1.8.0 that we use, with those of their attributes that we fill. What is not known is left out.

use serde::Serialize;
use serde_json::{Map, Value};

/// An attribute that has nothing to say.
trait Unset {
    fn is_unset(&self) -> bool;
}

impl<T> Unset for Option<T> {
    fn is_unset(&self) -> bool {
        self.is_none()
    }
}

impl<T> Unset for Vec<T> {
    fn is_unset(&self) -> bool {
        self.is_empty()
    }
}

macro_rules! objects {
    ($($(#[$doc:meta])* $name:ident { $($attribute:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        // The schema chooses the names.
        #[allow(clippy::struct_field_names)]
        #[derive(Debug, Default, Serialize)]
        pub struct $name {
            $(
                #[serde(skip_serializing_if = "Unset::is_unset")]
                pub $attribute: $type,
            )*
        }
    )*};
}

objects! {
    /// Class 2004.
    DetectionFinding {
        action: Option<&'static str>,
        action_id: Option<u32>,
        activity_id: Option<u32>,
        activity_name: Option<&'static str>,
        category_name: Option<&'static str>,
        category_uid: Option<u32>,
        class_name: Option<&'static str>,
        class_uid: Option<u32>,
        comment: Option<String>,
        count: Option<u64>,
        device: Option<Device>,
        disposition: Option<&'static str>,
        disposition_id: Option<u32>,
        end_time: Option<i64>,
        evidences: Vec<Evidence>,
        finding_info: Option<FindingInfo>,
        is_alert: Option<bool>,
        message: Option<String>,
        metadata: Option<Metadata>,
        observables: Vec<Observable>,
        policy: Option<Policy>,
        resources: Vec<Resource>,
        severity: Option<&'static str>,
        severity_id: Option<u32>,
        start_time: Option<i64>,
        status: Option<&'static str>,
        status_detail: Option<String>,
        status_id: Option<u32>,
        time: Option<i64>,
        type_name: Option<String>,
        type_uid: Option<u64>,
        unmapped: Option<Map<String, Value>>,
    }
    /// What made the event.
    Metadata {
        labels: Vec<String>,
        log_name: Option<&'static str>,
        product: Option<Product>,
        profiles: Vec<&'static str>,
        uid: Option<String>,
        version: Option<&'static str>,
    }
    /// Portcullis.
    Product {
        name: Option<&'static str>,
        vendor_name: Option<&'static str>,
        version: Option<&'static str>,
    }
    /// The finding itself.
    FindingInfo {
        analytic: Option<Analytic>,
        attacks: Vec<Attack>,
        created_time: Option<i64>,
        first_seen_time: Option<i64>,
        last_seen_time: Option<i64>,
        related_events: Vec<RelatedEvent>,
        title: Option<String>,
        types: Vec<String>,
        uid: Option<String>,
    }
    /// The rule.
    Analytic {
        name: Option<String>,
        r#type: Option<&'static str>,
        type_id: Option<u32>,
        uid: Option<String>,
    }
    /// MITRE ATT&CK.
    Attack {
        sub_technique: Option<Technique>,
        technique: Option<Technique>,
    }
    /// A technique or a sub-technique.
    Technique {
        uid: Option<String>,
    }
    /// An earlier finding.
    RelatedEvent {
        r#type: Option<&'static str>,
        uid: Option<String>,
    }
    /// What the finding rests on.
    Evidence {
        api: Option<Api>,
        connection_info: Option<Connection>,
        container: Option<Container>,
        dst_endpoint: Option<Endpoint>,
        name: Option<&'static str>,
        process: Option<Process>,
        query: Option<Query>,
        src_endpoint: Option<Endpoint>,
    }
    /// An operator's call.
    Api {
        operation: Option<String>,
    }
    /// A process.
    Process {
        ancestry: Vec<ProcessEntity>,
        cmd_line: Option<String>,
        container: Option<Container>,
        created_time: Option<i64>,
        file: Option<File>,
        name: Option<String>,
        namespace_pid: Option<u32>,
        parent_process: Option<Box<Process>>,
        path: Option<String>,
        pid: Option<u32>,
        user: Option<User>,
        working_directory: Option<String>,
    }
    /// An ancestor.
    ProcessEntity {
        cmd_line: Option<String>,
        created_time: Option<i64>,
        name: Option<String>,
        path: Option<String>,
        pid: Option<u32>,
    }
    /// An executed file.
    File {
        is_deleted: Option<bool>,
        name: Option<String>,
        path: Option<String>,
        r#type: Option<&'static str>,
        type_id: Option<u32>,
    }
    /// By number: names are the container's.
    User {
        uid: Option<String>,
    }
    /// A container.
    Container {
        image: Option<Image>,
        name: Option<String>,
        orchestrator: Option<&'static str>,
        pod_uuid: Option<String>,
        runtime: Option<&'static str>,
        uid: Option<String>,
    }
    /// Its image.
    Image {
        name: Option<String>,
        uid: Option<String>,
    }
    /// An end of a socket.
    Endpoint {
        ip: Option<String>,
        port: Option<u32>,
    }
    /// A socket.
    Connection {
        direction: Option<&'static str>,
        direction_id: Option<u32>,
        protocol_name: Option<&'static str>,
        protocol_num: Option<u32>,
    }
    /// A question to a name server.
    Query {
        hostname: Option<String>,
        r#type: Option<String>,
    }
    /// What the finding is about, beyond the process.
    Resource {
        name: Option<String>,
        namespace: Option<String>,
        r#type: Option<&'static str>,
        uid: Option<String>,
    }
    /// The node.
    Device {
        hostname: Option<String>,
        name: Option<String>,
        os: Option<Os>,
        r#type: Option<&'static str>,
        type_id: Option<u32>,
    }
    /// Its system.
    Os {
        kernel_release: Option<String>,
        name: Option<&'static str>,
        r#type: Option<&'static str>,
        type_id: Option<u32>,
    }
    /// What can be searched for.
    Observable {
        name: Option<&'static str>,
        r#type: Option<&'static str>,
        type_id: Option<u32>,
        value: Option<String>,
    }
    /// The policy that decided.
    Policy {
        name: Option<String>,
    }
}
