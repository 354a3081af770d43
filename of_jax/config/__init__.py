"""Typed, frozen, validated configs. Enters: a config file's object and command-line overrides.
Leaves: one `Config` in which every field has its final value.

Nothing here imports jax, so a mistake is reported in well under a second. A field whose default
is None or "auto" is computed from the others by `resolve`, and config.json records the result.
"""

from of_jax.config.fields import (
    PARAMETERS,
    SCHEMA,
    SCHEMA_VERSION,
    USUAL,
    differences,
    field_help,
    fields,
    from_dict,
    get,
    nearest_field,
    replaced,
    to_dict,
)
from of_jax.config.resolve import apply_overrides, resolve
from of_jax.config.sections import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TelemetryConfig,
    TrainConfig,
)

__all__ = [
    "PARAMETERS", "SCHEMA", "SCHEMA_VERSION", "USUAL", "Config", "DataConfig", "MeshConfig",
    "ModelConfig", "OptimConfig", "TelemetryConfig", "TrainConfig", "apply_overrides",
    "differences", "field_help", "fields", "from_dict", "get", "nearest_field", "replaced",
    "resolve", "to_dict"]
