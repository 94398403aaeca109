"""Checks the Helm chart: check.py HELM CHART PROGRAMS. A test is a function; the last line counts them."""

import copy, os, subprocess, sys, tempfile, tomllib, traceback

import kubernetes_validate, yaml

HELM, CHART, PROGRAMS = sys.argv[1:]
VERSIONS = ["1.30", "1.37"]
INLINE = open("config/policies/default.yaml").read()
SECOND = open("config/policies/enforce-offensive.yaml").read()

CASES = {
    "defaults": {},
    "everything": {
        "image": {"repository": "registry.example/portcullis", "digest": "sha256:" + "0" * 64},
        "imagePullSecrets": [{"name": "registry"}],
        "clusterName": "a \"b\": c",
        "runtimeClass": {"name": "guarded", "nodeSelector": {"guard": "true"}},
        "installer": {"restartContainerd": True, "containerdVersion": 2, "systemdCgroup": "always", "prefix": "/opt/portcullis"},
        "agent": {"backend": "lsm", "log": {"format": "text"}, "otlp": {"endpoint": "http://collector.example:4317", "headers": {"x-tenant": "a \"b\""}},
                  "sandbox": {"seccomp": "log"}, "tcp": {"enabled": True, "secretName": "agent-tls", "read": ["DNS:a.example"], "admin": ["URI:spiffe://b/c", "CN:d \"e\" <f>"]},
                  "extraConfig": "[export.jsonl]\npath = \"/var/log/portcullis/signals.jsonl\"\n"},
        "metrics": {"enabled": True, "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
        "policies": {"crd": {"enabled": True}, "inline": {"default.yaml": INLINE, "more.yaml": SECOND}},
        "catalog": {"acme.toml": "[category.acme]\ntitle = 'ACME'\nseverity = 'low'\ntechniques = []\n"},
        "podAnnotations": {"a": "b"}, "podLabels": {"c": "d"},
    },
    "nothing": {"installer": {"enabled": False}, "runtimeClass": {"create": False}, "tolerations": [], "nodeSelector": {}},
}


def helm(*arguments):
    return subprocess.run([HELM, *arguments], capture_output=True, text=True)


def values_file(values):
    file = tempfile.NamedTemporaryFile("w", suffix=".yaml")
    yaml.safe_dump(values, file)
    file.flush()
    return file


def rendered(values):
    with values_file(values) as file:
        done = helm("template", "guard", CHART, "--namespace", "portcullis", "-f", file.name)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(documents, kind):
    return [document for document in documents if document["kind"] == kind]


def pod(documents):
    [daemonset] = of_kind(documents, "DaemonSet")
    return daemonset["spec"]["template"]["spec"]


def container(documents, name):
    spec = pod(documents)
    return next(c for c in spec.get("initContainers", []) + spec["containers"] if c["name"] == name)


def data(documents, suffix):
    [found] = [m for m in of_kind(documents, "ConfigMap") if m["metadata"]["name"].endswith(suffix)]
    return found["data"] or {}


def program(name, *arguments):
    done = subprocess.run([os.path.join(PROGRAMS, name), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"{name} {arguments}: {done.stdout}{done.stderr}"


def test_lint():
    for values in CASES.values():
        with values_file(values) as file:
            done = helm("lint", "--strict", CHART, "-f", file.name)
        assert done.returncode == 0, done.stdout + done.stderr


def test_objects_are_what_kubernetes_takes():
    for values in CASES.values():
        for document in rendered(values):
            if document["kind"] == "PodMonitor":  # The Prometheus operator's.
                continue
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)


def test_a_broken_object_is_noticed():
    broken = copy.deepcopy(of_kind(rendered({}), "DaemonSet")[0])
    broken["spec"]["template"]["spec"]["hostPid"] = True
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(broken, version, strict=True)
        except kubernetes_validate.ValidationError:
            continue
        raise AssertionError("a misspelt field is taken")


def test_kinds():
    kinds = {name: sorted({document["kind"] for document in rendered(values)}) for name, values in CASES.items()}
    base = ["ConfigMap", "DaemonSet", "ServiceAccount"]
    assert kinds["nothing"] == base, kinds
    assert kinds["defaults"] == sorted(base + ["RuntimeClass"]), kinds
    of_crd = ["ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"]
    assert kinds["everything"] == sorted(base + of_crd + ["PodMonitor", "RuntimeClass"]), kinds


def test_misspelt_values_are_refused():
    for wrong in [{"agnet": {}}, {"agent": {"backnd": "lsm"}}, {"agent": {"backend": "ebpf"}}, {"agent": {"otlp": {"endpoint": "collector:4317"}}}, {"policies": {"inline": {"a.txt": ""}}},
                  {"installer": {"containerdVersion": 3}}, {"agent": {"sandbox": {"seccomp": "no"}}}, {"agent": {"tcp": {"admin": ["a.example"]}}}, {"agent": {"tcp": {"enabled": True, "admin": ["CN:a"]}}}, {"runtimeClass": {"name": "runc"}}, {"paths": {"run": "relative"}}]:
        with values_file(wrong) as file:
            done = helm("template", "guard", CHART, "-f", file.name)
        assert done.returncode != 0, f"{wrong} is taken"


def test_every_value_is_in_the_schema():
    import json
    schema = json.load(open(os.path.join(CHART, "values.schema.json")))

    def look(values, schema, place):
        for key, value in values.items():
            assert key in schema["properties"], f"{place}.{key}"
            below = schema["properties"][key]
            if isinstance(value, dict) and "properties" in below:
                look(value, below, f"{place}.{key}")
    look(yaml.safe_load(open(os.path.join(CHART, "values.yaml"))), schema, "")


def test_mounts_lead_to_volumes_and_config_maps_that_there_are():
    for values in CASES.values():
        documents = rendered(values)
        spec = pod(documents)
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        maps = {m["metadata"]["name"] for m in of_kind(documents, "ConfigMap")}
        used = set()
        for one in spec.get("initContainers", []) + spec["containers"]:
            for mount in one["volumeMounts"]:
                assert mount["name"] in volumes, mount
                used.add(mount["name"])
        assert used == set(volumes), f"not used: {set(volumes) - used}"
        for volume in volumes.values():
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps, volume


def test_the_configuration_is_that_of_the_mounts():
    for values in CASES.values():
        documents = rendered(values)
        config = tomllib.loads(data(documents, "-config")["portcullis.toml"])
        agent = container(documents, "agent")
        mounts = {mount["mountPath"]: mount for mount in agent["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod(documents)["volumes"]}
        # What shims on the node read and write is at the same path there.
        for path in [config["run_dir"], config["state_dir"], config["policy_dir"], os.path.dirname(config["bpffs_root"])]:
            assert volumes[mounts[path]["name"]]["hostPath"]["path"] == path, path
        for path in [*config["more_policy_dirs"], config["catalog_dir"]]:
            assert "configMap" in volumes[mounts[path]["name"]], path
        assert agent["args"] == ["--config=/etc/portcullis/config/portcullis.toml"]
        assert mounts["/etc/portcullis/config"]["name"] == "config"
        environment = {variable["name"] for variable in agent["env"]}
        assert {"PORTCULLIS_NODE_NAME", "PORTCULLIS_CLUSTER_NAME"} <= environment


def test_the_agent_takes_configuration_policies_and_catalogue():
    for values in CASES.values():
        documents = rendered(values)
        text = data(documents, "-config")["portcullis.toml"]
        with tempfile.TemporaryDirectory() as root:
            # As in the pod, but below a directory.
            text = text.replace('"/etc/portcullis/', f'"{root}/')
            for name, files in [("inline", data(documents, "-policies")), ("catalog.d", data(documents, "-catalog"))]:
                os.mkdir(os.path.join(root, name))
                for file, content in files.items():
                    open(os.path.join(root, name, file), "w").write(content)
                    if name == "inline":
                        program("portcullis", "policy", "validate", "--catalog-dir", os.path.join(root, "catalog.d"), os.path.join(root, name, file))
            config = os.path.join(root, "portcullis.toml")
            open(config, "w").write(text)
            program("portcullisd", "--config", config, "--check-config")


def test_the_installers_command_is_one_that_portcullis_takes():
    for values in [CASES["defaults"], CASES["everything"]]:
        installer = container(rendered(values), "install")
        shell, flag, script, _, *arguments = installer["command"]
        with tempfile.TemporaryDirectory() as root:
            for directory in ["host/etc/containerd", "bin", "from"]:
                os.makedirs(os.path.join(root, directory))
            open(os.path.join(root, "host/etc/containerd/config.toml"), "w").write("version = 2\n")
            for name in ["containerd-shim-portcullis-v1", "portcullis"]:
                open(os.path.join(root, "from", name), "w").write(name)
            # What would restart containerd says so instead.
            stub = os.path.join(root, "bin/nsenter")
            open(stub, "w").write(f"#!/bin/sh\necho \"$@\" >> {root}/restarts\n")
            os.chmod(stub, 0o755)
            script = script.replace("--root /host", f"--root {root}/host").replace("/usr/bin", f"{root}/from")
            path = f"{root}/bin:{os.path.abspath(PROGRAMS)}:{os.environ['PATH']}"
            for _ in range(2):
                done = subprocess.run([shell, flag, script, "install", *arguments], capture_output=True, text=True, env={**os.environ, "PATH": path})
                assert done.returncode == 0, done.stderr
            prefix = "/opt/portcullis" if values else "/usr/local"
            assert os.path.exists(f"{root}/host{prefix}/bin/containerd-shim-portcullis-v1")
            handler = "guarded" if values else "portcullis"
            assert f"runtimes.{handler}]" in open(f"{root}/host/etc/containerd/conf.d/portcullis.toml").read()
            restarts = open(f"{root}/restarts").readlines() if os.path.exists(f"{root}/restarts") else []
            # Once: the second run changes nothing. Never, unless it is wished.
            assert len(restarts) == (1 if values else 0), restarts


def test_the_watchers_arguments_are_ones_that_it_takes():
    documents = rendered(CASES["everything"])
    for name in ["first-policies", "policies"]:
        one = container(documents, name)
        done = subprocess.run([os.path.join(PROGRAMS, "portcullis-policies"), *one["args"], "--version"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "privileged" not in one["securityContext"] and one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        config = tomllib.loads(data(documents, "-config")["portcullis.toml"])
        assert f"--directory={config['policy_dir']}" in one["args"]
        assert [f"--more={path}" for path in config["more_policy_dirs"]] == [a for a in one["args"] if a.startswith("--more")]
    agent = container(documents, "agent")
    assert not any(mount["name"] == "token" for mount in agent["volumeMounts"]), "the agent needs no API server"


def test_rights_are_the_least():
    [role] = of_kind(rendered(CASES["everything"]), "ClusterRole")
    assert role["rules"] == [
        {"apiGroups": ["portcullis.dev"], "resources": ["portcullispolicies"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["portcullis.dev"], "resources": ["portcullispolicies/status"], "verbs": ["patch"]},
    ]


def fleet(name):
    return list(yaml.safe_load_all(open(os.path.join("config/fleet", name))))


def test_the_fleets_collector_is_what_agents_send_to():
    [kustomization] = fleet("kustomization.yaml")
    objects = {document["kind"]: document for name in kustomization["resources"] for document in fleet(name)}
    for document in objects.values():
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
    [config_map] = kustomization["configMapGenerator"]
    spec = objects["Deployment"]["spec"]["template"]["spec"]
    assert spec["volumes"][0]["configMap"]["name"] == config_map["name"]
    [one] = spec["containers"]
    mounted = {"--config=" + os.path.join(one["volumeMounts"][0]["mountPath"], file) for file in config_map["files"]}
    assert set(one["args"]) <= mounted, one["args"]
    ports = {port["name"]: port["containerPort"] for port in one["ports"]}
    [collector] = fleet("collector.yaml")
    grpc = collector["receivers"]["otlp"]["protocols"]["grpc"]
    assert grpc["endpoint"].endswith(f":{ports['otlp']}")
    assert collector["extensions"]["health_check"]["endpoint"].endswith(f":{ports['health']}")
    [(pipeline, parts)] = collector["service"]["pipelines"].items()
    # With a batch processor or a queue it would say that it has taken what it may still lose.
    assert (parts["receivers"], parts["processors"]) == (list(collector["receivers"]), list(collector["processors"]))
    assert "batch" not in parts["processors"]
    for [store] in [fleet(file) for file in config_map["files"] if file != "collector.yaml"]:
        assert store["service"]["pipelines"] == {pipeline: {"exporters": list(store["exporters"])}}
        assert all(exporter["sending_queue"] == {"enabled": False} for exporter in store["exporters"].values())
        # It has another queue, and its mapping takes data streams only.
        for exporter in [exporter for name, exporter in store["exporters"].items() if name == "elasticsearch"]:
            assert exporter["batcher"] == {"enabled": False} and exporter["logs_index"].startswith("logs-")
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service"]["spec"]["selector"] == labels == objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    # And the chart's agents send there, and may.
    [values] = fleet("values.yaml")
    documents = rendered(values)
    config = tomllib.loads(data(documents, "-config")["portcullis.toml"])
    [port] = objects["Service"]["spec"]["ports"]
    name, namespace = objects["Service"]["metadata"]["name"], kustomization["namespace"]
    assert config["export"]["otlp"]["endpoint"] == f"http://{name}.{namespace}.svc:{port['port']}"
    [rule] = objects["NetworkPolicy"]["spec"]["ingress"]
    allowed = rule["from"][0]["podSelector"]["matchLabels"].items()
    [daemonset] = of_kind(documents, "DaemonSet")
    assert allowed <= daemonset["spec"]["template"]["metadata"]["labels"].items()


tests = {name: test for name, test in globals().items() if name.startswith("test_")}
failed = 0
for name, test in tests.items():
    try:
        test()
        print(f"test {name} ... ok")
    except Exception:
        failed += 1
        traceback.print_exc()
        print(f"test {name} ... FAILED")
print(f"test result: {'FAILED' if failed else 'ok'}. {len(tests) - failed} passed; {failed} failed")
sys.exit(failed > 0)
