#!/usr/bin/env bash
exec bash "$(dirname "$0")/../run.sh" imagenet-100 cl_gan "$@"
