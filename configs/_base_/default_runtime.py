default_scope = "odise_mm"
log_level = "INFO"
