#!/usr/bin/env bash
exec bash "$(dirname "$0")/../run.sh" stl10 cl_gan "$@"
