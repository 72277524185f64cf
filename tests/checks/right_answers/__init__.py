from tests.checks.right_answers import (
    adapter_tuning,
    custom_ops,
    fine_tuning,
    parameter_tuning,
    prompt_tuning,
    remapping_tuning,
)

MODULES = (
    fine_tuning,
    prompt_tuning,
    adapter_tuning,
    parameter_tuning,
    remapping_tuning,
    custom_ops,
)
