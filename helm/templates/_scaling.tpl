{{/*
All sets of tags that workers of this chart serve, as /metrics is to name them: for gpu and linux, that is
gpu,linux,gpu+linux. Workers that are scaled to none tell nobody of their tags.
*/}}
{{- define "hostler.tagSets" -}}
{{- $sets := list -}}
{{- range .Values.workers -}}
  {{- $own := list -}}
  {{- range $tag := sortAlpha (.tags | default list) -}}
    {{- $more := list $tag -}}
    {{- range $own }}{{- $more = append $more (printf "%s+%s" . $tag) -}}{{- end -}}
    {{- $own = concat $own $more -}}
  {{- end -}}
  {{- $sets = concat $sets $own -}}
{{- end -}}
{{- join "," ($sets | uniq) -}}
{{- end }}

{{/* The jobs that call for workers with these tags: those that ask for some of them, or for none if there are none. */}}
{{- define "hostler.jobsFor" -}}
{{- $tags := list -}}
{{- range .tags }}{{- $tags = append $tags (regexQuoteMeta .) -}}{{- end -}}
{{- if $tags -}}
{{- $any := printf "(%s)" (join "|" $tags) -}}
tags=~`{{ $any }}([+]{{ $any }})*`
{{- else -}}
tags="",priority!="node"
{{- end -}}
{{- end }}

{{/*
What scales one set of workers. Called with {root, component, set, name, scaling, workers}. All web pods tell the same
numbers, so the largest counts and not their sum. What runs counts beside what waits: otherwise the pods that run the
last jobs would be taken away.
*/}}
{{- define "hostler.scaler" -}}
{{- $keda := .root.Values.keda -}}
{{- $address := required "keda.prometheusAddress is needed for workers that are scaled." $keda.prometheusAddress -}}
{{- $most := .scaling.maxReplicas | default 10 -}}
{{- $least := ternary .scaling.minReplicas 1 (hasKey .scaling "minReplicas") -}}
{{- if gt (int $least) (int $most) }}
{{- fail (printf "Workers %s: minReplicas is more than maxReplicas." .set) }}
{{- end -}}
{{- $own := printf `namespace="%s",service="%s-web"` .root.Release.Namespace (include "hostler.name" .root) -}}
{{- $jobs := printf "%s,%s" ($keda.selector | default $own) (include "hostler.jobsFor" .workers) -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ .name }}
  labels:
    {{- include "hostler.labels" . | nindent 4 }}
spec:
  scaleTargetRef:
    name: {{ .name }}
  pollingInterval: {{ $keda.pollingSeconds }}
  cooldownPeriod: {{ ternary .scaling.cooldownSeconds 300 (hasKey .scaling "cooldownSeconds") }}
  minReplicaCount: {{ $least }}
  maxReplicaCount: {{ $most }}
  # While Prometheus is away nobody knows what waits; so many are there for it.
  fallback:
    failureThreshold: 4
    replicas: {{ max 1 $least }}
  triggers:
    {{- range $name, $trigger := dict
      "jobs" (dict "threshold" .workers.slots "query" (printf "sum(max by (tags, priority) (hostler_queue_jobs{%s})) + sum(max by (tags, priority) (hostler_queue_running_jobs{%s}))" $jobs $jobs))
      "oldest" (dict "threshold" (.scaling.oldestSeconds | default 60) "query" (printf "max(hostler_queue_oldest_seconds{%s})" $jobs))
    }}
    - type: prometheus
      name: {{ $name }}
      metricType: AverageValue
      metadata:
        serverAddress: {{ $address }}
        query: {{ $trigger.query | quote }}
        threshold: {{ $trigger.threshold | quote }}
        activationThreshold: "0"
      {{- with $keda.authenticationName }}
      authenticationRef:
        name: {{ . }}
      {{- end }}
    {{- end }}
{{- end }}
