{{/* The release's name, with the chart's where it is not in it already; short enough for a suffix. */}}
{{- define "hostler.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 32 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" (.Release.Name | trunc 24 | trimSuffix "-") .Chart.Name -}}
{{- end -}}
{{- end }}

{{/* Where browsers find the web when an ingress leads to it. */}}
{{- define "hostler.ingressURL" -}}
{{ ternary "https" "http" (ne "" .Values.ingress.tlsSecretName) }}://{{ .Values.ingress.host }}
{{- end }}

{{/* What selects the pods of one component. Called with {root, component} and, for workers, {set}. */}}
{{- define "hostler.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .set }}
hostler/workers: {{ . }}
{{- end }}
{{- end }}

{{- define "hostler.labels" -}}
{{ include "hostler.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}
