{{/*
What every pod of Hostler has in common. Called with {root, component, command, options}, where options are the
component's own values, and optionally {account, env, ports, probes, restart, stopSeconds, workDir}.
*/}}
{{- define "hostler.pod" -}}
{{- $values := .root.Values -}}
metadata:
  labels:
    {{- include "hostler.selector" . | nindent 4 }}
spec:
  {{- with .account }}
  serviceAccountName: {{ . }}
  {{- end }}
  automountServiceAccountToken: false
  # Links would put variables such as HOSTLER_PORT=tcp://… into the environment, where Hostler looks for its settings.
  enableServiceLinks: false
  {{- with $values.imagePullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  securityContext:
    {{- toYaml $values.podSecurityContext | nindent 4 }}
  # Draining, then killing what did not end, then ten seconds for saying goodbye to Redis.
  terminationGracePeriodSeconds: {{ add $values.drainSeconds $values.killGraceSeconds (.stopSeconds | default 0) 10 }}
  {{- with .restart }}
  restartPolicy: {{ . }}
  {{- end }}
  {{- with .options.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .options.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "hostler.selector" . | nindent 10 }}
  containers:
    - name: hostler
      image: {{ printf "%s:%s" $values.image.repository ($values.image.tag | default .root.Chart.AppVersion) }}
      imagePullPolicy: {{ $values.image.pullPolicy | default "IfNotPresent" }}
      command: {{ toJson .command }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      env:
        {{- include "hostler.env" . | trim | nindent 8 }}
      {{- with .ports }}
      ports:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .probes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
      {{- with .stopSeconds }}
      # Load balancers need a moment to hear that this pod is leaving; until then it goes on serving.
      lifecycle:
        preStop:
          sleep:
            seconds: {{ . }}
      {{- end }}
      {{- with .options.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        {{- if .workDir }}
        - name: work
          mountPath: /var/lib/hostler
        {{- end }}
        {{- if $values.redisCA.secretName }}
        - name: redis-ca
          mountPath: /etc/hostler/redis-ca
          readOnly: true
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- if .workDir }}
    - name: work
      emptyDir:
        sizeLimit: {{ .workDir }}
    {{- end }}
    {{- if $values.redisCA.secretName }}
    - name: redis-ca
      secret:
        secretName: {{ $values.redisCA.secretName }}
    {{- end }}
{{- end }}

{{/* A value as the text that the environment holds; printed as it is, a million would become 1e+06. */}}
{{- define "hostler.text" -}}
{{- if kindIs "string" . }}{{ . | quote }}{{ else }}{{ toJson . | quote }}{{ end -}}
{{- end }}

{{- define "hostler.env" -}}
{{- $secret := .root.Values.secretName -}}
{{- range list "REDIS_URL" "S3_ENDPOINT_URL" "S3_ACCESS_KEY_ID" "S3_SECRET_ACCESS_KEY" "HOSTLER_SECRET_KEY" }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ . }}
{{- end }}
{{- if ne .component "worker" }}{{/* workers run other people's commands and need no administrator's password */}}
{{- range list "HOSTLER_ADMIN_EMAIL" "HOSTLER_ADMIN_PASSWORD" "HOSTLER_ENROLL_SECRET" }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ . }}
      optional: true
{{- end }}
{{- end }}
- name: HOSTLER_DRAIN_S
  value: {{ include "hostler.text" .root.Values.drainSeconds }}
- name: HOSTLER_KILL_GRACE_S
  value: {{ include "hostler.text" .root.Values.killGraceSeconds }}
{{- with .root.Values.redisCA }}
{{- if .secretName }}
- name: HOSTLER_REDIS_CA_FILE
  value: /etc/hostler/redis-ca/{{ .key }}
{{- end }}
{{- end }}
{{- range $name, $value := .env }}
- name: {{ $name }}
  value: {{ include "hostler.text" $value }}
{{- end }}
{{- range $name, $value := .root.Values.settings }}
- name: {{ $name }}
  value: {{ include "hostler.text" $value }}
{{- end }}
{{- end }}
