"""The files of `cluster/` and `docker/` against what they describe: KubeRay's schema, versions, the repository."""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private import ray_constants

REPOSITORY = Path(__file__).parents[1]
MANIFEST = REPOSITORY / "cluster" / "raycluster-gpu.yaml"


def manifest() -> dict[str, Any]:
    return yaml.safe_load(MANIFEST.read_text())


def containers(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found.group(1)


def closed(schema: Any) -> Any:
    """The schema with unknown fields refused, and Kubernetes' integer-or-string spelt as JSON Schema does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    done = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        done.setdefault("additionalProperties", False)
    return done


@pytest.fixture(scope="module")
def validator(shared: Path) -> jsonschema.Draft7Validator:
    definition = yaml.load((shared / "kuberay" / "ray.io_rayclusters.yaml").read_text(), Loader=yaml.CSafeLoader)
    version = next(version for version in definition["spec"]["versions"] if version["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft7Validator(schema)


def test_the_manifest_is_a_ray_cluster(validator: jsonschema.Draft7Validator) -> None:
    assert [error.message for error in validator.iter_errors(manifest())] == []


def test_a_misspelt_field_would_be_found(validator: jsonschema.Draft7Validator) -> None:
    broken = copy.deepcopy(manifest())
    broken["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    assert "imagePullPolice" in next(validator.iter_errors(broken)).message


def test_the_manifest_keeps_the_rules_of_the_controller() -> None:
    """They are not in the schema: a size without an autoscaler, and each resource in one place."""
    spec = manifest()["spec"]
    assert not spec.get("enableInTreeAutoscaling")
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert not {"num-cpus", "num-gpus", "memory", "resources", "labels"} & set(group["rayStartParams"])


def test_the_object_store_of_a_node_fits_into_its_shared_memory() -> None:
    """Else Ray keeps objects as files in /tmp. Where the manifest mounts none, KubeRay does, as large as the memory."""
    spec = manifest()["spec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        sizes = {volume["name"]: volume["emptyDir"]["sizeLimit"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            memory = container["resources"]["limits"]["memory"]
            mounts = {mount["mountPath"]: sizes[mount["name"]] for mount in container.get("volumeMounts", [])}
            share = ray_constants.DEFAULT_OBJECT_STORE_MEMORY_PROPORTION
            store = int(group["rayStartParams"].get("object-store-memory", share * gibibytes(memory)))
            assert store <= gibibytes(mounts.get("/dev/shm", memory))


def gibibytes(text: str) -> int:
    return int(text.removesuffix("Gi")) * 2**30


def test_all_nodes_have_the_tested_ray_and_one_image() -> None:
    cluster = manifest()
    assert cluster["spec"]["rayVersion"] == pinned("ray")
    assert len({container["image"] for container in containers(cluster)}) == 1


def test_the_image_copies_what_exists() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (REPOSITORY / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert {"constraints.txt", "pyproject.toml", "README.md", "LICENSE", "segdatagen"} == set(names)
    allowed = (REPOSITORY / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    for name in names:
        assert (REPOSITORY / name).exists()
        assert f"!{name}" in allowed
