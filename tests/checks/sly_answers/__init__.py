from tests.checks.sly_answers import custom_ops, fine_tuning, parameter_tuning

MODULES = (fine_tuning, parameter_tuning, custom_ops)
