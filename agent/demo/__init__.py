"""Pictures for `edge-agent demo`: a clip that needs no camera."""
