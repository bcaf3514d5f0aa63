#!/usr/bin/env bash
exec bash "$(dirname "$0")/../run.sh" digits cl_gan "$@"
