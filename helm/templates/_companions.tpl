{{/* What goes with every Deployment: an account that may do nothing, and a limit on voluntary evictions. */}}
{{- define "hostler.companions" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .name }}
  labels:
    {{- include "hostler.labels" . | nindent 4 }}
automountServiceAccountToken: false
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  labels:
    {{- include "hostler.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "hostler.selector" . | nindent 6 }}
{{- end }}
